"""What a worker publishes of itself, and what keeps it up: heartbeat, metrics, recycling, no sleep."""
