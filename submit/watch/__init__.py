"""``--watch``: full-screen views of the pool, of one batch and of the workers."""
