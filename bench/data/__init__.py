"""Rows of tables through templates into Redis, and results beside their rows out of it, per second."""
