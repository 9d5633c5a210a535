"""Commands of the machines of a pool: worker, scheduler, tune."""
