"""Daemons of a pool: what `promptmill deploy` writes and runs. Only :mod:`submit.deploy.host` touches a machine."""
