"""``promptmill run``: the whole path on one machine, with a worker process of its own."""
