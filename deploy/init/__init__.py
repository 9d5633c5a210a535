"""Init systems: a long-lived process of a pool as a launchd daemon or a systemd unit."""
