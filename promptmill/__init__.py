"""promptmill turns files of prompts into files of results on Apple silicon: ``from promptmill import Client``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submit import (
        BatchFinished,
        BatchHandle,
        Client,
        Event,
        FirstToken,
        LineFinished,
        PromptProgress,
        ScheduleHandle,
        WorkerState,
    )

    __version__: str

__all__ = [
    "BatchFinished",
    "BatchHandle",
    "Client",
    "Event",
    "FirstToken",
    "LineFinished",
    "PromptProgress",
    "ScheduleHandle",
    "WorkerState",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import promptmill` does not pay for redis and rq.
    if name == "__version__":
        from importlib.metadata import version

        return version("promptmill")
    if name not in __all__:
        raise AttributeError(f"module 'promptmill' has no attribute '{name}'")
    from promptmill.packages import check_packages

    check_packages()
    import submit

    return getattr(submit, name)
