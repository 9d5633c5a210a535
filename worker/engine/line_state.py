"""What the engine keeps of each line, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.decode import StepResult
from worker.engine.guided.masks import GuideError
from worker.engine.prefill import PrefillBatch
from worker.engine.scheduler import SequenceGroup
from worker.engine.sequence import Failure, InFlight, PreparedLine, Sequence


@dataclass(slots=True)
class EngineStats:
    """Totals since the engine was made. ``decode_rows`` sums the rows of all decode steps, ``decode_slots`` those that
    there was room for. ``decode_columns`` are the columns of attention that decode steps computed, over all rows and
    with padding, ``needed_columns`` those of them that hold a token of a row that goes on. ``preempted_rows`` counts
    rows taken out because the memory ran out, to begin again later, and ``repeated_rows`` those whose filters the best
    candidates did not cover and that went on by the full path; times are seconds. ``prefilled_tokens`` were computed
    by prefills, shared prefixes included and padding not, ``cached_tokens`` were taken from prefixes that were there:
    rows that begin again count again in both. ``drafted_tokens`` were proposed by a draft model, and
    ``accepted_tokens`` of them became part of a text."""

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
    repeated_rows: int = 0
    preempted_rows: int = 0
    recoveries: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decode_columns: int = 0
    needed_columns: int = 0

    def count(self, result: StepResult, slots: int) -> None:
        """A decode step was computed, with room for ``slots`` rows."""
        self.decode_steps += 1
        self.decode_rows += len(result.rows)
        self.decode_slots += slots
        self.decode_columns += result.columns
        self.needed_columns += result.needed
        self.drafted_tokens += result.drafted


@dataclass(slots=True, eq=False)
class LineState:
    """A line in the engine: its sequences, and the groups of those that have not ended."""

    line: PreparedLine
    sequences: list[Sequence]
    groups: list[SequenceGroup] = field(default_factory=list)
    begun: bool = False

    @property
    def unfinished(self) -> list[Sequence]:
        return [seq for seq in self.sequences if not seq.ended]

    def group(self, tokens: list[int], sequences: list[Sequence]) -> SequenceGroup:
        """A group for rows of one history, these tokens."""
        first = sequences[0]
        group = SequenceGroup(
            tokens,
            length=len(tokens) - 1,
            end=len(first.prompt) + first.limit,
            sequences=list(sequences),
            key=self.line.key,
            rank=self.line.rank,
            again=self.begun,
        )
        self.groups = [*(old for old in self.groups if not old.done), group]
        return group


def check_tokens(line: PreparedLine, vocab_size: int) -> None:
    """Refuse ids beyond the vocabulary: in a step they would read and write beyond the arrays.

    Raises:
        ValueError: there is one.
    """
    largest = max(0, *line.prompt, *line.eos, *line.sampling.logit_bias)
    if largest >= vocab_size:
        raise ValueError(f"token id {largest} is not in the model's vocabulary of {vocab_size}")


def in_flight(state: LineState, places: dict[SequenceGroup, PrefillBatch]) -> InFlight:
    """Where a line under way is; ``places`` has the batches that compute or hold the prompts of groups."""
    size = len(state.line.prompt)
    decoding = any(seq.tokens for seq in state.sequences) or any(group.running for group in state.groups)
    under_way = [places[group].prefilled(group) for group in state.groups if group in places]
    return InFlight(
        key=state.line.key,
        phase="decode" if decoding else "prefill",
        prompt_tokens=size,
        prefilled=size if decoding else min([size, *under_way]) if under_way else 0,
        completion_tokens=sum(len(seq.tokens) for seq in state.sequences),
    )


def failure_of(error: Exception) -> Failure:
    """What a line fails with. If it breaks the engine, that may have been the device's fault, or short of memory."""
    if isinstance(error, GuideError):
        return Failure("invalid_schema", str(error), param=error.field)
    return Failure("internal_error", f"{type(error).__name__}: {error}", passing=True)
