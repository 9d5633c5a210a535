"""How long batches are kept once they are done, and how they are removed."""

from __future__ import annotations

__all__ = ["KEEP_S"]

KEEP_S = 14 * 86400.0
"""What a batch is kept for where nothing else is said: seconds from its end."""
