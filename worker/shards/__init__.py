"""Shards on a worker: claimed, prepared, admitted to the engine, paused, and their records written."""
