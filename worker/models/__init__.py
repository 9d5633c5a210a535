"""Models of a worker: loaded, kept resident, unloaded, and the thread that computes with them."""
