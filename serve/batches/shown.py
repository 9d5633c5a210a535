"""Batches as OpenAI shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from jobs.batch import Batch
from jobs.lines.line import CHAT_URL
from serve.files.results import error_id, output_id
from serve.intake.orders import OPENAI, IntakeOrder

TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
DEFAULT_WINDOW = "24h"


def openai_of(batch: Batch) -> Mapping[str, Any]:
    """What HTTP knows of a batch that was made over it; nothing of one of the command line."""
    known = batch.metadata.get(OPENAI)
    return known if isinstance(known, dict) else {}


def batch_object(batch: Batch, problems: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """OpenAI's batch object. ``problems`` are those of a batch that failed."""
    known = openai_of(batch)
    metadata = {name: _text(value) for name, value in batch.metadata.items() if name != OPENAI}
    usage, times = batch.usage, dict(batch.times)
    if "cancelled" in times:
        times.setdefault("cancelling", times["cancelled"])
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": known.get("endpoint", CHAT_URL),
        "model": batch.models[0] if len(batch.models) == 1 else None,
        "errors": None if problems is None else {"object": "list", "data": list(problems)},
        "input_file_id": known.get("input_file_id", ""),
        "completion_window": known.get("completion_window", DEFAULT_WINDOW),
        "status": batch.status,
        "output_file_id": output_id(batch),
        "error_file_id": error_id(batch),
        "created_at": _seconds(times.get("created")) or 0,
        **{f"{name}_at": _seconds(times.get(name)) for name in TIMES},
        "expires_at": _seconds(times.get("expires")),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "metadata": metadata or None,
        "name": batch.name,
        "priority": batch.priority,
    }


def ordered_object(order: IntakeOrder, *, cancelled: float | None = None) -> dict[str, Any]:
    """OpenAI's object of a batch whose file is being checked, and which somebody ``cancelled`` then."""
    times = {"created": order.created_at, "expires": order.created_at + order.window_s}
    batch = Batch(
        id=order.batch_id,
        status="validating" if cancelled is None else "cancelling",
        name=order.name,
        priority=order.priority,
        times=times if cancelled is None else {**times, "cancelling": cancelled},
        metadata=order.batch_metadata,
    )
    return batch_object(batch, None)


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
