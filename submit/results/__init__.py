"""Records out: read in order, followed while a batch runs, and written in each format."""
