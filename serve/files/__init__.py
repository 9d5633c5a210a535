"""Files: uploaded ones on disk, and the results of batches as files."""
