"""Daemons of a pool: what `promptmill deploy` writes and runs. Only :mod:`deploy.host` touches a machine."""
