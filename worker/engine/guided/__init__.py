"""Guided decoding: which tokens a row may draw next, by its constraint and its thinking. No MLX."""
