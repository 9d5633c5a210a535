"""What a batch expects of its texts: JSON, a schema, a regular expression, a condition; checked, and judged by."""
