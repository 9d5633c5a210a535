"""What the engine keeps of each line, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from worker.engine.prefill import PrefillGroup, Prompt
from worker.engine.scheduler import Ticket
from worker.engine.sequence import Failure, InFlight, PreparedLine, Sequence

__all__ = [
    "EngineStats",
    "Line",
    "admitting",
    "check_tokens",
    "in_flight",
    "internal_error",
    "key_of",
    "without",
]


@dataclass(slots=True)
class EngineStats:
    """Totals since the engine was made. ``decode_rows`` sums the rows of all decode steps, ``decode_slots`` those
    that there was room for, ``repeated_rows`` counts rows whose filters the best candidates did not cover and that went
    on by the full path; times are seconds. ``prefilled_tokens`` were computed by prefills, shared prefixes included and
    padding not, ``cached_tokens`` were taken from prefixes that were there: rows that begin again count again in both.
    ``drafted_tokens`` were proposed by a draft model, and ``accepted_tokens`` of them became part of a text."""

    decode_steps: int = 0
    decode_rows: int = 0
    decode_slots: int = 0
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    finished_lines: int = 0
    failed_lines: int = 0
    repeated_rows: int = 0
    recoveries: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def rows_per_step(self) -> float:
        return self.decode_rows / self.decode_steps if self.decode_steps else 0.0


@dataclass(slots=True, eq=False)
class Line:
    """A line in the engine: its sequences, and the tickets of those that have not ended."""

    prepared: PreparedLine
    sequences: list[Sequence]
    tickets: list[Ticket] = field(default_factory=list)
    begun: bool = False

    @property
    def unfinished(self) -> list[Sequence]:
        return [seq for seq in self.sequences if not seq.ended]

    def ticket(self, tokens: list[int], sequences: list[Sequence]) -> Ticket:
        """A ticket for rows of one history, these tokens."""
        first = sequences[0]
        ticket = Ticket(
            owner=Prompt(tokens, list(sequences)),
            length=len(tokens) - 1,
            end=len(first.prompt) + first.limit,
            rows=len(sequences),
            rank=self.prepared.rank,
        )
        self.tickets = [*(old for old in self.tickets if not old.done), ticket]
        return ticket


def check_tokens(line: PreparedLine, vocab_size: int) -> None:
    """Refuse ids beyond the vocabulary: in a step they would read and write beyond the arrays.

    Raises:
        ValueError: there is one.
    """
    largest = max(0, *line.prompt, *line.eos, *line.sampling.logit_bias)
    if largest >= vocab_size:
        raise ValueError(f"token id {largest} is not in the model's vocabulary of {vocab_size}")


def key_of(ticket: Ticket) -> Hashable:
    """The key of the line that a ticket is of, as long as rows of it have still to start."""
    key: Hashable = ticket.owner.sequences[0].key
    return key


def admitting(only: frozenset[Hashable] | None, lines: Mapping[Hashable, Line]) -> Callable[[Ticket], bool] | None:
    """Which tickets may go where only some lines may begin: those of lines that have begun too. None: all."""
    if only is None:
        return None

    def may_go(ticket: Ticket) -> bool:
        key = key_of(ticket)
        return key in only or lines[key].begun

    return may_go


def without(groups: list[list[Ticket]], refused: frozenset[Hashable]) -> list[list[Ticket]]:
    """The groups of tickets without those of some lines, and none that is empty."""
    kept = ([ticket for ticket in tickets if key_of(ticket) not in refused] for tickets in groups)
    return [tickets for tickets in kept if tickets]


def in_flight(line: Line, places: dict[Ticket, PrefillGroup]) -> InFlight:
    """Where a line under way is; ``places`` has the groups that compute or hold the prompts of tickets."""
    size = len(line.prepared.prompt)
    decoding = any(seq.tokens for seq in line.sequences) or any(ticket.running for ticket in line.tickets)
    under_way = [places[ticket].prefilled(ticket) for ticket in line.tickets if ticket in places]
    return InFlight(
        key=line.prepared.key,
        phase="decode" if decoding else "prefill",
        prompt_tokens=size,
        prefilled=size if decoding else min([size, *under_way]) if under_way else 0,
        completion_tokens=sum(len(seq.tokens) for seq in line.sequences),
    )


def internal_error(error: Exception) -> Failure:
    """What a line that breaks the engine fails with. It may have been the device's fault, or short of memory."""
    return Failure("internal_error", f"{type(error).__name__}: {error}", passing=True)
