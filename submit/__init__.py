"""The submitter: the ``promptmill`` command and the Python client. Runs anywhere, never imports mlx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submit.client.client import (
        BatchFinished,
        BatchHandle,
        Client,
        Event,
        FirstToken,
        LineFinished,
        PromptProgress,
        WorkerState,
    )
    from submit.client.schedule import ScheduleHandle

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
]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command's --help does not pay for redis and rq.
    if name in __all__:
        from submit.client import client

        return getattr(client, name)
    raise AttributeError(f"module 'submit' has no attribute '{name}'")
