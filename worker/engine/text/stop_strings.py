"""Stop strings, found in the text of a row while it grows. No MLX: runs in the engine's thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Items

from jobs.params import Sampling
from worker.engine.text.detokenizer import TextStream
from worker.engine.text.markup import Markup, State
from worker.engine.text.parts import AnswerParts


class StopMatcher:
    """Finds the first stop string in the text of one row, however the text was tokenised.

    The match that is complete first wins, and of those complete at the same character the longest: that is what
    reading the text character by character gives, so it does not depend on where tokens begin. While fewer than
    ``min_tokens`` tokens are there nothing ends the text; a match must end in what came after them.
    With ``answers`` only what these say is looked at, else all of the text. ``one_call``: the text ends with the first
    call of a tool.
    """

    def __init__(
        self,
        stops: Items[str],
        stream: TextStream,
        min_tokens: int = 0,
        answers: AnswerParts | None = None,
        *,
        one_call: bool = False,
    ) -> None:
        self._stops = tuple(stops)
        self._stream = stream
        self._min_tokens = min_tokens
        self._answers = answers
        self._one_call = one_call
        self._count = 0
        self._searched = 0
        self.text = ""
        self.match: str | None = None

    def add(self, token: int) -> bool:
        """Take in one token; True when a stop string is complete. ``text`` is then what stands before it."""
        self._count += 1
        return self._search(self._stream.add(token), closed=False)

    @property
    def called(self) -> bool:
        """Whether the text is over because of a call."""
        return self._one_call and self._answers is not None and self._answers.calls_over > 0

    def close(self) -> bool:
        """End the text: what was held back may still complete a stop string. True when one ends it."""
        return self.match is not None or self._search(self._stream.close(), closed=True)

    def _search(self, text: str, *, closed: bool) -> bool:
        self.text = text
        if self._count < self._min_tokens:
            self._searched = len(text)
            return False
        for begin, end in self._parts(text, closed=closed):
            found = [(self._find(stop, text, begin, end), stop) for stop in self._stops]
            ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
            if ends:
                _, start, self.match = min(ends)
                self.text = text[:start]
                return True
            self._searched = max(self._searched, end)
        return False

    def _parts(self, text: str, *, closed: bool) -> Iterator[tuple[int, int]]:
        return iter([(0, len(text))]) if self._answers is None else self._answers.of(text, closed=closed)

    def _find(self, stop: str, text: str, begin: int, end: int) -> int:
        """Where the first ``stop`` starts that ends in text not searched before, or -1."""
        return text.find(stop, max(begin, self._searched - len(stop) + 1), end)


def stop_matcher(
    sampling: Sampling,
    stream: TextStream,
    markup: Markup,
    begins: State,
    *,
    calls: bool = False,
    one_call: bool = False,
) -> StopMatcher:
    """A matcher of a row's stop strings in its answer, unless it asks for them in its reasoning too. ``begins`` is the
    part that the text begins in, ``calls`` as in :class:`AnswerParts`."""
    answers = None
    if not markup.plain and (calls or not sampling.stop_in_reasoning):
        answers = AnswerParts(markup, begins, calls=calls, thoughts=sampling.stop_in_reasoning)
    return StopMatcher(sampling.stop, stream, sampling.min_tokens, answers, one_call=one_call)
