"""Loading a model through mlx-lm, and trying what it can do."""
