"""A worker whose device fails as soon as its model is loaded: ``python -m tests.sick_worker FLAGS``."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from worker.cli import main
from worker.engine import engine, recovery


def fail(*_: Any) -> NoReturn:
    raise RuntimeError("[METAL] Command buffer execution failed")


def warm_up(_self: engine.Engine) -> None:
    """Pass, and let everything fail from now on."""
    engine.Engine._collect = fail  # type: ignore[method-assign]
    recovery.try_alone = fail  # type: ignore[assignment]


if __name__ == "__main__":
    engine.Engine.warm_up = warm_up  # type: ignore[method-assign]
    sys.exit(main())
