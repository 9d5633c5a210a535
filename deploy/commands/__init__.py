"""The commands ``promptmill deploy`` and ``promptmill doctor``."""
