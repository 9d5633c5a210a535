"""Constraints on what a line's text may be: their kinds, and what is checked of them without a model."""
