"""What lies on disk: names and sizes, the plan, passes and commit records, token kinds, Zarr's metadata, identity."""
