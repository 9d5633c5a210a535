"""From checked lines to a live batch: shards of one group each, uploaded by a thread of its own."""
