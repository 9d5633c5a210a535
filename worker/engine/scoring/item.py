"""A prompt in the queue of those to be scored, and its place in what was computed. No tensors."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.engine.sequence import PreparedLine, SampledToken, Sequence

LAST = -1
"""Stands for a token that is not known yet. It is none of a vocabulary."""


@dataclass(slots=True, eq=False)
class Item:
    """One prompt of a ``line``, and the ``sequences`` that want its scores. ``again`` says that its line has begun
    before, ``cached`` how many of its tokens were there already, ``single`` that it is scored with nothing beside it.
    ``drawn`` has a token for each sequence, where they were drawn with the scores.
    """

    line: PreparedLine
    sequences: list[Sequence] = field(default_factory=list)
    again: bool = False
    cached: int = 0
    single: bool = False
    drawn: list[SampledToken] = field(default_factory=list)

    @property
    def key(self) -> Hashable:
        return self.line.key

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.line.prompt

    @property
    def first(self) -> int:
        """The first token that is scored."""
        return self.line.scoring.first if self.line.scoring is not None else 1

    @property
    def top(self) -> int:
        return self.line.scoring.top if self.line.scoring is not None else 0

    @property
    def blank(self) -> bool:
        """Whether it has no token to score: a first token follows nothing."""
        return self.first >= len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens that scores need: nothing follows the last."""
        return len(self.line.prompt) - 1

    @property
    def draws(self) -> bool:
        """Whether one token follows, and no text that needs caches. What a constraint allows is not known here."""
        return self.line.generates and self.line.sampling.max_tokens == 1 and self.line.guide is None

    @property
    def text(self) -> tuple[int, ...]:
        """The prompt, and the token that is drawn after it."""
        return (*self.tokens, LAST) if self.draws else self.tokens
