"""`promptmill serve` under load: uploads, requests that wait, latency, and clients that mean harm."""
