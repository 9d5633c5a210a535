"""Caches of keys and values: one batch of rows, rows that join it, and prefixes computed once."""
