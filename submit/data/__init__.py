"""Tables in: every format that data sets come in, as rows, and rows through templates into lines."""
