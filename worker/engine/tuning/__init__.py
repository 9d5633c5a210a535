"""How many rows to decode together: measured on the device, then chosen."""
