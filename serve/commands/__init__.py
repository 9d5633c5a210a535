"""The commands `promptmill serve` and `promptmill key`."""
