"""Init systems: a long-lived process of a pool as a daemon of launchd or a unit of systemd."""
