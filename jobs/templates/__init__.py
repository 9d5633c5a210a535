"""Templates over the columns of a row: Jinja2 in a sandbox, with a budget for each row, and filters for prompts."""
