"""``promptmill`` and ``python -m promptmill``: the command line, where the packages it is made of are promptmill's."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> int:
    """Run the command line; the exit status."""
    try:
        from promptmill.packages import exit_unless_ours

        exit_unless_ours()
        from submit.cli import main as run
    except KeyboardInterrupt:  # imports take a tenth of a second, in which somebody may change their mind
        return INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
