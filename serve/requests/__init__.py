"""Requests that somebody waits for: gathered into shards, and answered as soon as records are there."""
