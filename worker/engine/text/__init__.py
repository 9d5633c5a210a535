"""Tokens to text: bytes of tokens, stop strings, thinking apart from the answer."""
