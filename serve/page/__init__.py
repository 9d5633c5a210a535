"""The page at `/`: the pool, its batches and their records in a browser, on JSON of its own under `/api`."""
