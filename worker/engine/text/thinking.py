"""Splits a model's text into reasoning and answer, by its tokenizer's markers. No MLX."""

from __future__ import annotations

from collections.abc import Iterator


def split_thinking(
    raw: str, markers: tuple[str, str], *, inside: bool, continues: bool = False
) -> tuple[str, str | None]:
    """The text outside and inside of the model's thinking, without the markers.

    ``inside`` says that ``raw`` begins within a thinking block, because the prompt opened it. White space next to a
    marker belongs to the marker; with ``continues`` the prompt may hold the thought's first words, so the space before
    the next one is kept. The second part is None where there is no thought.
    """
    outer: list[str] = []
    thoughts: list[str] = []
    rest, after_marker = raw, inside and not continues
    while True:
        part, marker, rest = rest.partition(markers[1] if inside else markers[0])
        if after_marker:
            part = part.lstrip()
        if marker:
            part = part.rstrip()
        (thoughts if inside else outer).append(part)
        if not marker:
            break
        inside, after_marker = not inside, True
    thought = "\n".join(part for part in thoughts if part)
    return "\n".join(part for part in outer if part) if len(outer) > 1 else "".join(outer), thought or None


class AnswerParts:
    """Where in a growing text the answer is. ``inside`` is as in :func:`split_thinking`.

    White space at the beginning may belong to a marker, and letters at the end may become one: neither is part of an
    answer until more text has come.
    """

    def __init__(self, markers: tuple[str, str], *, inside: bool) -> None:
        self._markers = markers
        self._inside = inside
        self._after_marker = inside
        self._start = self._read = 0

    def of(self, text: str, *, closed: bool = False) -> Iterator[tuple[int, int]]:
        """Take in the text so far; begin and end of each part of the answer that may have grown since the last time.
        ``closed``: nothing follows."""
        while True:
            marker = self._markers[1] if self._inside else self._markers[0]
            found = text.find(marker, self._read)
            if not self._inside:
                yield self._part(text, found, closed=closed)
            if found < 0:
                self._read = max(self._read, len(text) - len(marker) + 1)
                return
            self._inside, self._after_marker = not self._inside, True
            self._start = self._read = found + len(marker)

    def _part(self, text: str, marker_at: int, *, closed: bool) -> tuple[int, int]:
        if marker_at >= 0:
            part = text[self._start : marker_at].rstrip()
        else:
            part = text[self._start : len(text) - (0 if closed else _begun(self._markers[0], text))]
        words = part.lstrip()
        if not words and not closed:
            return self._start, self._start
        skipped = len(part) - len(words) if self._after_marker else 0
        return self._start + skipped, self._start + len(part)


def _begun(marker: str, text: str) -> int:
    """How many letters at the end of ``text`` may be the beginning of ``marker``."""
    return next((count for count in range(len(marker) - 1, 0, -1) if text.endswith(marker[:count])), 0)
