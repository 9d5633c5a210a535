"""Commands that name batches: status, results, cancel, retry, priority, pause, resume, purge."""
