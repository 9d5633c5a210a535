"""Where batches and workers stand, as tables, JSON and progress bars."""
