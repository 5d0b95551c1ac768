"""The commands of ``python -m pipelines``, one file each."""
