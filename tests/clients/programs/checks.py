"""What the programs beside this one share. They run in a client's own environment, with nothing of promptmill in it."""

from __future__ import annotations

import json
import sys


def check(name: str, passed: object, why: object = "") -> None:
    """Say what became of one check; `why` is for one that did not pass."""
    sys.stdout.write(f"check {json.dumps({'name': name, 'passed': bool(passed), 'why': str(why)})}\n")
    sys.stdout.flush()
