"""Sampling: the parameters of all rows as arrays, and one vectorised step from logits to tokens."""
