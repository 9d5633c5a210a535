"""Finding the line that broke a step: each row under way is computed again, by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from jobs.errors import SickModelError
from jobs.params import Sampling
from worker.engine.decode import NotFiniteError, not_drawn
from worker.engine.line_state import LineState
from worker.engine.loading.model import LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.sampling.sampler import Sampler
from worker.engine.scheduler import SequenceGroup
from worker.engine.scoring.unit import score_alone
from worker.engine.sequence import PreparedLine, SampledToken, Sequence, sequences_of
from worker.engine.unbatched.speculative import batch_of

STEPS = 2
"""A step that failed was computing at most the token after the one that had not been read."""


class Suspects:
    """The lines that were under way when a step failed: those still ``untried``, and those ``cleared`` by a trial. A
    line that fails when it is tried by itself is guilty."""

    def __init__(self) -> None:
        self.untried: deque[LineState] = deque()
        self.cleared: list[LineState] = []
        self.guilty_found = False

    def add(self, line: LineState) -> None:
        """Suspect a line. Its prompt is computed once more, and in full."""
        for row in line.unfinished:
            row.cached_tokens = 0
        self.untried.append(line)

    def acquitted(self) -> list[tuple[LineState, list[Sequence]]]:
        """The rows of the cleared lines, those of one history together, in their old order."""
        found = []
        for line in self.cleared:
            found += [(line, rows) for rows in line.histories()]
        return found

    def try_next(
        self, model: LoadedModel, sampler: Sampler, step_size: int, accept: Callable[[SampledToken], None]
    ) -> tuple[LineState, Exception | None]:
        """Try the next line by itself; it, and the error if it is guilty. ``accept`` gets each token."""
        line = self.untried.popleft()
        try:
            for row, *_ in line.histories():  # others of the same history are alike
                try_alone(model, sampler, row, step_size, accept)
        except Exception as error:
            self.guilty_found = True
            return line, error
        self.cleared.append(line)
        return line, None


def try_alone(
    model: LoadedModel, sampler: Sampler, row: Sequence, step_size: int, accept: Callable[[SampledToken], None]
) -> None:
    """Prefill one row and decode ``STEPS`` tokens of it with nothing else in the batch; ``accept`` gets each token.

    Raises:
        Exception: whatever the model, MLX or ``accept`` raises: the row is to blame.
    """
    tokens = [*row.prompt, *row.tokens]
    if row.line.scoring is not None and row.scores is None:
        scores = score_alone(model, row.line, step_size)
        if scores is None:
            raise NotFiniteError
        if not row.line.generates:
            return
        row.scores = scores
    batch = PrefillBatch(model, [SequenceGroup(tokens, len(tokens) - 1, len(tokens))])
    batch.complete(step_size)
    decode_batch = batch_of(model, sampler)
    decode_batch.join([row], batch.take(batch.groups), tokens[-1:])
    for _ in range(STEPS):
        decode_batch.advance()
        result = decode_batch.sample()
        if result is None:
            return
        for drawn in result.read():
            if not drawn.finite:
                raise not_drawn(drawn)
            if not row.takes(drawn):
                return
            accept(drawn)
        if row.ended:
            return


def try_model(model: LoadedModel, sampler: Sampler) -> None:
    """See whether a model does the simplest prompt: two tokens after one.

    Raises:
        SickModelError: it does not, so no line is to blame.
    """
    simplest = PreparedLine("trial", (0,), Sampling(max_tokens=STEPS, seed=0, ignore_eos=True), frozenset())
    [row] = sequences_of(simplest, None, 0.0)
    try:
        try_alone(model, sampler, row, 1, lambda drawn: row.tokens.append(drawn.token))
    except Exception as error:
        raise SickModelError(f"the model fails at the simplest prompt: {type(error).__name__}: {error}") from error
