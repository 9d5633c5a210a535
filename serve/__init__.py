"""`promptmill serve`: OpenAI's Files, Batches, Models and blocking completions over HTTP, on a pool's queues."""
