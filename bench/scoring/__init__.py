"""Scoring beside mlx-lm's own evaluation, one text at a time, and bare forwards."""
