"""Splits a model's text into its parts, by its markup: thoughts, calls of tools, the answer. No MLX."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from worker.engine.text.markup import Markup, State


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text: ``text[start:end]`` is what is said, ``text[begin:stop]`` is that with the markers around it.
    ``closed`` says that a marker ended it, ``marked`` that one began it."""

    state: State
    begin: int
    start: int
    end: int
    stop: int
    closed: bool
    marked: bool

    def said(self, text: str, *, continues: bool = False) -> str:
        """What is said, without the white space next to a marker: that belongs to the marker. With ``continues`` the
        prompt may hold the first words of what no marker began, so the space before the next one is kept."""
        part = text[self.start : self.end]
        if self.marked and not (continues and self.start == 0):
            part = part.lstrip()
        return part.rstrip() if self.closed else part


def segments_of(text: str, markup: Markup, state: State, *, calls: bool = False) -> list[Segment]:
    """The parts of a whole text that begins in ``state``, headers left out. Without ``calls``, of a line that offers no
    tools, what looks like one is part of the answer."""
    found: list[Segment] = []
    begin = start = 0
    while True:
        marker, then = _next(text, start, markup, state, calls=calls)
        end, stop = (marker.start(), marker.end()) if marker is not None else (len(text), len(text))
        if state == "header" and marker is None and not text[start:].lstrip().startswith(("<|", "to=")):
            state = "answer"  # of a model that writes no headers after all
        # The marker of a call is the call's own, that of a thought's end nobody's but the thought's.
        rest = end if then == "call" else stop
        if state != "header" or marker is None:
            marked = start > 0 or state in ("reasoning", "header")
            found.append(Segment(state, begin, start, end, rest, marker is not None, marked))
            begin = rest
        if marker is None or then is None:
            return [one for one in found if one.state != "header"]
        state, start = then, stop


def _next(
    text: str, start: int, markup: Markup, state: State, *, calls: bool
) -> tuple[re.Match[str] | None, State | None]:
    """The marker that ends the part at ``start``, and what begins behind it."""
    pattern, targets = _edges(markup, state, calls=calls)
    found = pattern.search(text, start)
    if found is None and state == "reasoning" and calls and markup.call_start:
        # A thought that nothing ends is over where a call begins, as with mlx-lm.
        return re.compile(re.escape(markup.call_start)).search(text, start), "call"
    return found, None if found is None else targets[found[0]]


def _edges(markup: Markup, state: State, *, calls: bool) -> tuple[re.Pattern[str], dict[str, State]]:
    """What finds the next marker out of a state, and what begins behind each."""
    targets = dict(markup.leaving(state, calls=calls))
    return re.compile("|".join(map(re.escape, sorted(targets, key=len, reverse=True))) or "(?!)"), targets


def split_thinking(raw: str, markup: Markup, state: State, *, continues: bool = False) -> tuple[str, str | None]:
    """The text outside and inside of the model's thinking, without the markers; the second part is None where there
    is no thought."""
    segments = segments_of(raw, markup, state)
    outer = [one.said(raw, continues=continues) for one in segments if one.state != "reasoning"]
    return joined(outer), thoughts_of(raw, segments, continues=continues)


def thoughts_of(raw: str, segments: list[Segment], *, continues: bool = False) -> str | None:
    """What the model thought, None where there is nothing of it."""
    thoughts = (one.said(raw, continues=continues) for one in segments if one.state == "reasoning")
    return "\n".join(part for part in thoughts if part) or None


def joined(parts: list[str]) -> str:
    """The parts of an answer as one text."""
    return "\n".join(part for part in parts if part) if len(parts) > 1 else "".join(parts)


class AnswerParts:
    """Where in a growing text the answer is. It begins in ``state``; with ``calls``, of a line that offers tools, calls
    are no part of the answer, and ``calls_over`` counts those that have ended. With ``thoughts`` those are part of it.

    White space at the beginning may belong to a marker, and letters at the end may become one: neither is part of an
    answer until more text has come.
    """

    def __init__(self, markup: Markup, state: State, *, calls: bool = False, thoughts: bool = False) -> None:
        self._markup = markup
        self._calls = calls
        self._shown: tuple[State, ...] = ("answer", "reasoning") if thoughts else ("answer",)
        self._state: State = state
        self._after_marker = state != "answer"
        self._start = self._read = 0
        self._enter(state)
        self.calls_over = 0

    def of(self, text: str, *, closed: bool = False) -> Iterator[tuple[int, int]]:
        """Take in the text so far; begin and end of each part of the answer that may have grown since the last time.
        ``closed``: nothing follows."""
        while True:
            found = self._pattern.search(text, self._read)
            if self._state in self._shown:
                yield self._part(text, found.start() if found is not None else -1, closed=closed)
            if found is None:
                self._read = max(self._read, len(text) - self._longest + 1)
                return
            self.calls_over += self._state == "call"
            self._enter(self._targets[found[0]])
            self._after_marker = True
            self._start = self._read = found.end()

    def _enter(self, state: State) -> None:
        self._state = state
        self._pattern, self._targets = _edges(self._markup, state, calls=self._calls)
        self._longest = max(map(len, self._targets), default=1)

    def _part(self, text: str, marker_at: int, *, closed: bool) -> tuple[int, int]:
        if marker_at >= 0:
            part = text[self._start : marker_at].rstrip()
        else:
            held = 0 if closed else max((_begun(marker, text) for marker in self._targets), default=0)
            part = text[self._start : len(text) - held]
        words = part.lstrip()
        if not words and not closed:
            return self._start, self._start
        skipped = len(part) - len(words) if self._after_marker else 0
        return self._start + skipped, self._start + len(part)


def _begun(marker: str, text: str) -> int:
    """How many letters at the end of ``text`` may be the beginning of ``marker``."""
    return next((count for count in range(len(marker) - 1, 0, -1) if text.endswith(marker[:count])), 0)
