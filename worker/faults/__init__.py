"""What a worker does about faults: in-flight lines, quarantine, crash loops, refused shards, the spool."""
