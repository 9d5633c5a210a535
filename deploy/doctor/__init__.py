"""``promptmill doctor``: facts of a machine and of a Redis are gathered, checks make findings of them."""
