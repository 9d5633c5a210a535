"""Notes after a submission: when the batch begins and ends, and whether any worker will run it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from submit.status.text import duration, plural, printable

if TYPE_CHECKING:
    from redis import Redis

    from jobs.lines.line import Defaults
    from submit.input.validate import Findings
    from submit.status.worker_state import WorkerState

CHECK_HERE = "to have them checked here, install promptmill[guided]"
NAMED = 3
"""Of the models that lines name for themselves, so many are named."""


def notes(findings: Findings, defaults: Defaults) -> list[str]:
    """What the user may not have meant, or does not know, about lines that are good."""
    own_models, after_answer, unchecked = findings.own_models, findings.after_answer, findings.unchecked
    said = []
    if after_answer:
        ends, turn = ("ends", "it") if after_answer == 1 else ("end", "them")
        said.append(
            f"{plural(after_answer, 'line')} {ends} with an assistant's message, and the model begins a new turn after "
            f"{turn}; to have such messages continued: --continue-final-message ('continue_final_message': true in a "
            "line), or write them into 'prefill_response'"
        )
    if own_models and not defaults.override_model:
        lines, plural_s = sum(own_models.values()), "" if len(own_models) == 1 else "s"
        names = [f"'{printable(name)}'" for name in list(own_models)[:NAMED]] + ["..."] * (len(own_models) > NAMED)
        said.append(
            f"{plural(lines, 'line')} {'names its' if lines == 1 else 'name their'} own model{plural_s} "
            f"{', '.join(names)}: --model {printable(defaults.model or '')} is only for lines without one; "
            "--override-model uses it for all"
        )
    if findings.unexpecting:
        said.append(
            f"re_ask does nothing for {plural(findings.unexpecting, 'line')}: say what texts are to be, with --expect "
            "('expect' in a line)"
        )
    if unchecked:
        said.append(f"{plural(unchecked, 'constraint')} left to the worker's check: {CHECK_HERE}")
    return said


def moment(seconds: float, now: float) -> str:
    """A time to come by the clock of who reads it, and in how long: ``2026-11-22 02:00 CET (in 7h24m)``."""
    local = datetime.fromtimestamp(seconds).astimezone()
    return f"{local:%Y-%m-%d %H:%M %Z} (in {duration(seconds - now)})"


def times(
    now: float, *, begins: float | None, expires_in: float | None, keep_s: float | None, keep_given: bool
) -> str | None:
    """What was said of a batch's times, as one line; None where nothing was. ``begins`` is since the epoch."""
    said = []
    if begins is not None:
        said.append(f"begins {moment(begins, now)}")
    if expires_in is not None:
        said.append(f"expires {moment((begins or now) + expires_in, now)}")
    if keep_given and keep_s is None:
        said.append("kept until `promptmill purge` removes it")
    elif keep_given:
        said.append(f"kept for {duration(keep_s)} after its end")
    return "; ".join(said) or None


def unserved(models: Iterable[str], states: Iterable[WorkerState]) -> list[str]:
    """Those of ``models`` that no worker serves, with or without an adapter."""
    from submit.status.workers import served_by

    served = {served_by(queue, None) for state in states for queue in state.queues}
    return [model for model in models if not any(name == model or name.startswith(f"{model}+") for name in served)]


def waits_for(connection: Redis, models: Iterable[str]) -> list[str]:
    """A note for each model that no worker of the pool serves now."""
    from submit.status.workers import Workers

    lacking = unserved(models, Workers(connection).read())
    return [f"no worker serves {printable(model)} now; it waits for one" for model in lacking]
