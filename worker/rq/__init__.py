"""RQ's side of a worker: registration, queues read with bounds, leases, recovery."""
