"""Commands of the pool: worker, workers, scheduler."""
