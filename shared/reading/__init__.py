"""Reading a cache: rows by number, layer, class and split, each block checked on first touch."""
