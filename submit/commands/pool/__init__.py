"""Commands that are processes of the pool: worker, scheduler."""
