"""Commands that name batches: results, cancel, retry, priority, pause, resume, purge."""
