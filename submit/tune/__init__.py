"""How many rows of a model to decode together on this machine: measured by the worker package, shown here."""
