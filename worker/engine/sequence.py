"""What travels through the engine: a prepared line, its sequences, and what comes out. No tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from jobs.params import Sampling
from worker.engine.guided.guide import Guide, GuidePlan
from worker.engine.scoring.task import Scores, ScoringTask
from worker.engine.text.markup import State
from worker.engine.text.stop_strings import StopMatcher

NO_TOKEN = -1
"""The token of a row whose logits are NaN, infinite, or all of them -infinity."""
NONE_ALLOWED = -2
"""The token of a row whose constraint allows only tokens of -infinity, or none."""
FULL_STEPS = 64
"""How many steps a row's vocabulary is sorted after the last one in which the candidates did not cover its filters."""
SEED_BYTES = 8
WITHOUT_CONTEXT = 4096
"""The most tokens of a text without ``max_tokens``, for a model whose context length is unknown."""


@dataclass(frozen=True, slots=True)
class PreparedLine:
    """A line ready for the engine: checked against the model and tokenised, off the engine's thread.

    ``key`` is the caller's identity of the line and opaque here. ``prompt`` holds at least one token id.
    ``sampling`` has its seed filled in. ``eos`` are the ids that end a text: the model's and the line's own.
    ``xtc_exempt`` are the ids XTC never cuts (newline and EOS). ``begins`` is the part of an answer that the prompt
    ends in, such as a thought; ``continues`` says that the text goes on from the prompt's last word: its first space
    is part of it. Lines of a lower ``rank`` begin before those of a higher one. ``guide`` has the line's constraint
    and how much it may think, where it says anything of either. ``tools`` are those that it may call. ``scoring`` says
    what of the prompt is to be scored, ``echo`` is a text that comes before that of the model, and ``others`` are
    further prompts of the same line, whose choices come after.
    """

    key: Hashable
    prompt: tuple[int, ...]
    sampling: Sampling
    eos: frozenset[int]
    xtc_exempt: tuple[int, ...] = ()
    begins: State = "answer"
    continues: bool = False
    rank: int = 0
    guide: GuidePlan | None = None
    tools: tuple[dict[str, Any], ...] = ()
    parallel_tool_calls: bool = True
    scoring: ScoringTask | None = None
    echo: str | None = None
    others: tuple[PreparedLine, ...] = ()

    @property
    def generates(self) -> bool:
        """Whether a text follows the prompt."""
        return self.scoring is None or self.scoring.generates

    @property
    def one_call(self) -> bool:
        """Whether a text is over with the first call of a tool."""
        return bool(self.tools) and not self.parallel_tool_calls

    @property
    def constrained(self) -> bool:
        """Whether its texts must be of some form."""
        return self.guide is not None and self.guide.constrained


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion being generated; a line with ``n`` choices is ``n`` sequences. It owns its counters.

    ``tokens`` holds every generated token, the ending EOS included: ``completion_tokens`` counts that one too, as
    mlx-lm does. ``limit`` is the most tokens it may generate: ``max_tokens``, what the context leaves, or, without
    ``max_tokens``, what the memory has room for.
    ``cached_tokens`` counts prompt tokens that were there already when its prompt was first computed.
    ``stop_matcher`` reads the text of one with stop strings along, and ``text``, of such a one that ended, is the raw
    text, cut before the match. Times are seconds of the
    engine's clock; ``waited_s`` is how long the prompt, computed ahead, waited for a free row.
    ``full`` is for how many steps more its vocabulary is sorted, in case the candidates do not cover its filters.
    ``accepted_draft_tokens`` counts tokens that a draft model had proposed; None where there is none. ``started`` is
    its place among all rows in the order in which they first started to decode; None: it has not yet. ``guide`` is the
    state of its line's guide once it decodes; ``valid``, of one with a constraint that ended, whether its text is
    complete. ``scores`` are
    those of its prompt, where they were asked for and are there.
    """

    line: PreparedLine
    choice: int
    seed: int
    limit: int
    limit_reason: str = "max_tokens"
    tokens: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    stop_reason: str | None = None
    stop_string: str | None = None
    stop_matcher: StopMatcher | None = None
    text: str | None = None
    cached_tokens: int = 0
    submitted_at: float = 0.0
    prefill_started: float | None = None
    waited_s: float = 0.0
    first_token_at: float | None = None
    finished_at: float | None = None
    full: int = 0
    accepted_draft_tokens: int | None = None
    started: int | None = None
    guide: Guide | None = None
    valid: bool | None = None
    scores: Scores | None = None

    @property
    def key(self) -> Hashable:
        return self.line.key

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.line.prompt

    @property
    def sampling(self) -> Sampling:
        return self.line.sampling

    @property
    def ended(self) -> bool:
        return self.stop_reason is not None

    @property
    def prompt_tokens(self) -> int:
        return len(self.line.prompt)

    @property
    def scored_tokens(self) -> int:
        return 0 if self.scores is None else len(self.scores.logprobs)

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)

    @property
    def output(self) -> list[int]:
        """The tokens that make the text: all but the EOS that ended it."""
        ended = self.stop_reason == "eos" and self.tokens[-1] in self.line.eos
        return self.tokens[:-1] if ended else self.tokens

    @property
    def prefill_s(self) -> float | None:
        """From the first chunk of the prompt to the first token, with the decode steps of other rows in between but
        without ``waited_s``."""
        if self.prefill_started is None or self.first_token_at is None:
            return None
        return self.first_token_at - self.prefill_started - self.waited_s

    @property
    def decode_s(self) -> float | None:
        """From the first token to the last."""
        if self.first_token_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.first_token_at

    def guided(self) -> Guide | None:
        """Its guide, with all tokens taken in; None where all tokens may come."""
        if self.line.guide is None:
            return None
        if self.guide is None:
            self.guide = Guide(self.line.guide)
        self.guide.follow(self.tokens)
        return self.guide

    def append(self, drawn: SampledToken, now: float) -> None:
        """Take in the next token."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.tokens.append(drawn.token)
        if drawn.logprob is not None:
            self.token_logprobs.append(drawn.logprob)
        if drawn.top is not None:
            self.top_logprobs.append(drawn.top)
        if drawn.drafted:
            self.accepted_draft_tokens = (self.accepted_draft_tokens or 0) + 1

    def takes(self, drawn: SampledToken) -> bool:
        """Whether the token drawn counts: where the candidates did not cover the row's filters, it does if the
        vocabulary was sorted too. In that case it will be for the next ``FULL_STEPS`` steps."""
        counts = drawn.covered or self.full > 0
        self.full = max(0, self.full - 1) if drawn.covered else FULL_STEPS
        return counts

    def end(self, reason: str, now: float) -> None:
        self.stop_reason = reason
        self.finished_at = now


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What one step computed for one row. ``covered`` is false where the candidates did not cover the row's filters:
    unless the vocabulary was sorted too, the step must be repeated. ``token`` is ``NO_TOKEN`` where the logits are not
    finite, and ``NONE_ALLOWED`` where the row's constraint leaves none. ``drafted`` says that a draft model had
    proposed the token."""

    row: Sequence
    token: int
    covered: bool
    logprob: float | None
    top: list[tuple[int, float]] | None
    drafted: bool = False

    @property
    def finite(self) -> bool:
        """Whether there is a token at all."""
        return self.token >= 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a line failed: a code of the contract, a message, and in ``param`` the field at fault. ``passing`` if another
    attempt may fare better."""

    code: str
    message: str
    passing: bool = False
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A line that ended: all its sequences in order of choice, or what went wrong with it."""

    key: Hashable
    sequences: Items[Sequence]
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """One line under way, for status: ``phase`` is ``prefill`` or ``decode``, counts are tokens over all choices."""

    key: Hashable
    phase: str
    prompt_tokens: int
    prefilled: int
    completion_tokens: int


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of ``n`` choices (0..2^64-1): choice 0 has the line's own, others a hash of both."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "little")


def sequences_of(line: PreparedLine, context: int | None, now: float, first: int = 0) -> list[Sequence]:
    """The ``n`` sequences of a prompt, choices of their line from ``first`` on; ``context`` is the most tokens a row
    may hold (None: unknown).

    Raises:
        ValueError: when the line's seed is not filled in, or its prompt is empty or leaves no room in the context.
    """
    sampling = line.sampling
    if sampling.seed is None or not line.prompt:
        raise ValueError("a prepared line needs a seed and at least one prompt token")
    limit, reason = sampling.max_tokens, "max_tokens"
    if limit is None:
        limit = WITHOUT_CONTEXT if context is None else context
    if context is not None and context - len(line.prompt) < limit:
        limit, reason = context - len(line.prompt), "context_length"
    if limit < 1 and line.generates:
        raise ValueError(f"the prompt has {len(line.prompt)} tokens: no room in a context of {context}")
    return [
        Sequence(line, choice, choice_seed(sampling.seed, choice), limit, reason, submitted_at=now)
        for choice in range(first, first + sampling.n)
    ]
