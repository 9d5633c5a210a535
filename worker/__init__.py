"""The MLX side: the RQ worker, the engine and the models it keeps warm."""
