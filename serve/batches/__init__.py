"""Batches as OpenAI shows them, made over HTTP or not."""
