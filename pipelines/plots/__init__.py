"""The plots that people look at, one file each: readable in grey, embedded in a page or written as PNG."""
