"""Batches, shards and records in Redis: how they lie there, and every step on them."""
