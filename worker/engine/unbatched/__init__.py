"""Modes in which rows run one at a time: rotating or quantised caches, and speculative decoding."""
