"""The report of a run: its numbers summed up, a page of Markdown and a plot."""
