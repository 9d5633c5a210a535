"""What a long-lived process of a pool is called."""

from __future__ import annotations

import os
import socket


def process_name(name: str | None) -> str:
    """The name of this process among others of a pool: ``name``, else the host's, and its process id."""
    return f"{name or socket.gethostname().split('.')[0]}.{os.getpid()}"
