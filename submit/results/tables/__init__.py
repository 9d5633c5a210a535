"""Tables out: results beside the rows they came from, as Parquet, CSV or flat JSON lines, and their card."""
