"""A worker of an older table of parameters, which has no ``min_p``: ``python -m tests.older_worker FLAGS``."""

from __future__ import annotations

import sys

from jobs import params

NEWER = "min_p"


def forget(name: str) -> None:
    """Take a parameter out of the table, before anything else has read it."""
    params.PARAMETERS = {other: row for other, row in params.PARAMETERS.items() if other != name}


if __name__ == "__main__":
    forget(NEWER)
    from worker.cli import main

    sys.exit(main())
