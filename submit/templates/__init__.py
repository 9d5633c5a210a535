"""Templates of lines: the fields of a line with templates for texts, and the files that they come in."""
