"""Templates of lines: Jinja2 in a sandbox with budgets, filters, and the files that templates come in."""
