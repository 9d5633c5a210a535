"""The contract both sides share: job lines, parameters, records, batches, and how they lie in Redis.

Nothing here imports mlx or click: the submitter runs anywhere, and the worker reads the same definitions.
"""
