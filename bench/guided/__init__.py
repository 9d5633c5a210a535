"""Measurements of guided lines."""
