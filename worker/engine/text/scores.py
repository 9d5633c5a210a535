"""Scores of prompts as records show them. No MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.engine.scoring.task import Scores, ScoringTask

Entry = Callable[[int, float], dict[str, Any]]
"""Makes the entry of a token and its log-probability."""


def prompt_entries(tokens: tuple[int, ...], scores: Scores, top: int, entry: Entry) -> list[dict[str, Any] | None]:
    """``prompt_logprobs``: an entry for each token, with ``top`` alternatives; None for the first."""
    entries: list[dict[str, Any] | None] = [None] * scores.first
    for place, logprob in enumerate(scores.logprobs):
        found = entry(tokens[scores.first + place], logprob)
        best = _alternatives(scores, place, top, entry)
        short = {"id": found["id"], "token": found["token"], "logprob": found["logprob"]}
        entries.append({**short, "rank": scores.ranks[place], "top": [_short(one) for one in best]})
    return entries


def echoed_entries(tokens: tuple[int, ...], scores: Scores, top: int, entry: Entry) -> list[dict[str, Any]]:
    """What ``logprobs`` has of the prompt's tokens; no log-probability of the first."""
    first = [{**entry(token, 0.0), "logprob": None, "top_logprobs": None} for token in tokens[: scores.first]]
    return [*first, *_entries(tokens, scores, scores.first, top, entry)]


def score_of(
    tokens: tuple[int, ...], scores: Scores, task: ScoringTask, entry: Entry, top: int | None
) -> dict[str, Any] | None:
    """``score``: how likely the continuation is; None where there is none. ``top`` alternatives of each of its tokens
    are shown; None: nor are the tokens."""
    if task.border is None:
        return None
    shown = {
        "logprob": scores.total(task.border),
        "tokens": len(tokens) - task.border,
        "is_greedy": scores.is_greedy(task.border),
    }
    return shown if top is None else {**shown, "logprobs": _entries(tokens, scores, task.border, top, entry)}


def _entries(tokens: tuple[int, ...], scores: Scores, begin: int, top: int, entry: Entry) -> list[dict[str, Any]]:
    places = range(begin - scores.first, len(scores.logprobs))
    return [
        {
            **entry(tokens[scores.first + place], scores.logprobs[place]),
            "top_logprobs": _alternatives(scores, place, top, entry),
        }
        for place in places
    ]


def _alternatives(scores: Scores, place: int, top: int, entry: Entry) -> list[dict[str, Any]]:
    if not top:
        return []
    ids, values = scores.top_ids[place][:top], scores.top_logprobs[place][:top]
    return [entry(token, value) for token, value in zip(ids, values, strict=True)]


def _short(entry: dict[str, Any]) -> dict[str, Any]:
    return {"id": entry["id"], "token": entry["token"], "logprob": entry["logprob"]}
