"""Writing a cache: the files of a unit, and the writers that share its units."""
