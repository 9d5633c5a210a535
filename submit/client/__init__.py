"""The Python client: batches, schedules and events as objects."""
