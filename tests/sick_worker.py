"""A worker whose device fails at every step: ``python -m tests.sick_worker FLAGS``."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from worker.cli import main
from worker.engine import engine, recovery


def fail(*_: Any) -> NoReturn:
    raise RuntimeError("[METAL] Command buffer execution failed")


if __name__ == "__main__":
    engine.Engine._advance = fail  # type: ignore[method-assign]
    engine.try_alone = recovery.try_alone = fail  # type: ignore[assignment]
    sys.exit(main())
