"""A line of a prompt file: its fields, messages and values checked, and the names other tools have for them."""
