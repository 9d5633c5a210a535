"""The connection to Redis, what a user may do there, and the RQ jobs of shards."""
