"""A row's guide: which tokens may come next, as a function of its tokens. First it may think, then it answers."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from enum import Enum
from typing import Any

from worker.engine.guided.vocabulary import WORD, Mask, Vocabulary

MOST_BLANKS = 2
"""Blank tokens between a thought and the value after it."""


class Phase(Enum):
    """Where in its text a row is. The first three are places to begin."""

    OPENING = "the value begins, or a thought before it"
    THINKING = "within a thought"
    ANSWER = "within the value"
    CLOSING = "a thought is over, and its last marker is being written"
    BLANK = "after a thought: the value begins, or blanks before it"
    ENDED = "after the token that ends the text"


@dataclass(frozen=True, slots=True)
class ThinkingTokens:
    """The tokens that begin and end a model's thinking, at least one each; their texts are ``start_text`` and
    ``end_text``."""

    start: tuple[int, ...]
    end: tuple[int, ...]
    start_text: str
    end_text: str


@dataclass(frozen=True, slots=True, eq=False)
class GuidePlan:
    """What a line asks of its rows.

    ``matcher`` is what its texts must match, at its beginning (None: nothing), ``thinking`` how the model thinks
    (None: it does not), ``budget`` the most tokens of that (None: no limit). A text begins in ``phase``. ``eos`` ends
    it, where it is complete: not before ``least`` tokens (None: never), unless nothing else may come there.
    ``field`` of the line is what asks for the constraint.
    """

    vocabulary: Vocabulary
    matcher: Any
    thinking: ThinkingTokens | None
    phase: Phase
    eos: frozenset[int]
    least: int | None = 0
    budget: int | None = None
    field: str | None = None

    @property
    def constrained(self) -> bool:
        return self.matcher is not None

    def matches(self, text: str) -> bool:
        """Whether a whole text is what the constraint asks for."""
        matcher, tokens = self.matcher.deep_copy(), self.vocabulary.greedy(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


class Guide:
    """The state of one row. ``error`` says why the row cannot go on, None as long as it can."""

    def __init__(self, plan: GuidePlan) -> None:
        self.plan = plan
        self.error: str | None = None
        self._matcher: Any = plan.matcher.deep_copy() if plan.constrained else None
        self._phase = plan.phase
        self._seen = 0
        self._matching = plan.phase is not Phase.THINKING
        """Whether the text so far is the beginning of a value."""
        self._place = 0
        """How many tokens of a marker are written, or how many blanks."""
        self._thought: list[int] = []
        self._thoughts = 0
        """Tokens of all thoughts."""
        self._tail = b""
        if plan.phase is Phase.THINKING:
            self._think()

    def copy(self) -> Guide:
        """Another guide in the same state."""
        other = object.__new__(Guide)
        other.__dict__.update(self.__dict__)
        other._thought = [*self._thought]
        other._matcher = None if self._matcher is None else self._matcher.deep_copy()
        return other

    # -- what comes next ----------------------------------------------------------------------------------------------

    @property
    def matcher(self) -> Any:
        """The matcher that says what may come next, None where it has no say."""
        has_say = self._matching and self._phase in (Phase.OPENING, Phase.ANSWER, Phase.BLANK)
        return self._matcher if has_say else None

    @property
    def complete(self) -> bool:
        """Whether the text so far is what the constraint asks for."""
        matcher = self._matcher if self._phase is Phase.ENDED else self.matcher
        return matcher is not None and self.error is None and bool(matcher.is_accepting())

    @property
    def exhausted(self) -> bool:
        """Whether the value can only end."""
        return self.complete and bool(self._matcher.is_stopped())

    def shape(self, mask: Mask, *, complete: bool) -> None:
        """Make ``mask`` what may come next: it holds what :attr:`matcher` allows, and whether the value is
        ``complete``; where there is no matcher it holds all tokens."""
        plan, phase = self.plan, self._phase
        if phase is Phase.CLOSING and plan.thinking is not None:
            mask[:] = 0
            _allow(mask, plan.thinking.end[self._place])
            return
        if not plan.constrained:
            return
        if not self._matching and phase is Phase.OPENING:
            mask[:] = 0
        if phase is Phase.BLANK and self._place < MOST_BLANKS:
            mask |= plan.vocabulary.blanks
        for token in plan.eos:
            _forbid(mask, token)
        if phase is Phase.OPENING and plan.thinking is not None:
            _allow(mask, plan.thinking.start[self._place])
        early = plan.least is None or self._seen < plan.least
        if complete and not (early and mask.any()):
            for token in plan.eos:
                _allow(mask, token)

    # -- what came ----------------------------------------------------------------------------------------------------

    def follow(self, tokens: Items[int]) -> None:
        """Take in what is new of the row's ``tokens``."""
        while self._seen < len(tokens) and self.error is None:
            self._take(tokens[self._seen])
            self._seen += 1

    def _take(self, token: int) -> None:
        plan, thinking = self.plan, self.plan.thinking
        if self._phase is Phase.CLOSING and thinking is not None:
            self._place += 1
            if self._place == len(thinking.end):
                self._answer()
        elif self._phase is Phase.THINKING:
            self._thoughts += 1
            self._thought.append(token)
            self._think()
        elif not plan.constrained:
            if thinking is not None and self._wrote(token, thinking.start, thinking.start_text):
                self._think()
        elif self._phase is Phase.OPENING and thinking is not None and token == thinking.start[self._place]:
            self._place += 1
            # It may be the value's beginning as well.
            self._matching = self._matching and self._matcher.try_consume_tokens([token]) == 1
            if self._place == len(thinking.start):
                self._matcher = plan.matcher.deep_copy()
                self._think()
        elif self._matching and token in plan.eos and self._matcher.is_accepting():
            self._phase = Phase.ENDED
        elif self._phase is Phase.BLANK and self._place < MOST_BLANKS and _allows(plan.vocabulary.blanks, token):
            self._place += 1
        else:
            self._phase = Phase.ANSWER
            self._consume(token)

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self.error = self._matcher.get_error().strip() or f"token {token} is none that may come there"

    def _think(self) -> None:
        """Within a thought, with its tokens so far."""
        plan, thinking = self.plan, self.plan.thinking
        if thinking is None:
            raise ValueError("the model does not think")
        if self._phase is not Phase.THINKING:
            self._phase, self._matching, self._thought, self._tail = Phase.THINKING, False, [], b""
        if self._thought and self._wrote(self._thought[-1], thinking.end, thinking.end_text):
            self._answer()
        elif plan.budget is not None and self._thoughts >= plan.budget:
            self._phase, self._place = Phase.CLOSING, _begun(thinking.end, self._thought)

    def _wrote(self, token: int, marker: tuple[int, ...], text: str) -> bool:
        """Whether ``token`` completes a marker, in whatever tokens it is written."""
        data = self.plan.vocabulary.tokens[token]
        self._tail = (self._tail + data)[-max(1, len(text.encode())) :]
        return marker == (token,) or self._tail == text.encode()

    def _answer(self) -> None:
        """A thought is over."""
        self._phase, self._place, self._matching, self._tail = Phase.BLANK, 0, True, b""


def _begun(marker: tuple[int, ...], tokens: Items[int]) -> int:
    """How many tokens of a marker are written at the end of ``tokens``."""
    sizes = range(min(len(marker) - 1, len(tokens)), 0, -1)
    return next((size for size in sizes if tuple(tokens[-size:]) == marker[:size]), 0)


def _allow(mask: Mask, token: int) -> None:
    mask[token // WORD] |= 1 << (token % WORD)


def _forbid(mask: Mask, token: int) -> None:
    mask[token // WORD] &= 0xFFFFFFFF ^ (1 << (token % WORD))


def _allows(mask: Mask, token: int) -> bool:
    return bool(mask[token // WORD] & (1 << (token % WORD)))
