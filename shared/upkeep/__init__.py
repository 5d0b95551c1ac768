"""Looking after a cache: verify, status, what killed writers left, its file system, and the archive tier."""
