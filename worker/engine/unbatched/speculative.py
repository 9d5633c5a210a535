"""A row whose tokens a small model proposes, several at a time, and the model itself checks in one forward.

What a row draws is a function of its seed, the position and the logits alone. So the model's own tokens after each of
the proposals are sampled in one step, as rows that differ in position only, and proposals are accepted as far as they
are those tokens: the text is the one the model gives without proposals, whatever the parameters. Proposals are drawn
in the same way from the other model's logits, because equal draws agree most often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Items
from dataclasses import dataclass, field, replace
from typing import cast

import mlx.core as mx
import numpy as np

from worker.engine.caches import prompt_cache
from worker.engine.caches.prompt_cache import Cache, Prefilled
from worker.engine.decode import CLEAR_EVERY, DecodeBatch, StepResult, read_tokens
from worker.engine.guided.masks import Lookahead
from worker.engine.loading.model import LoadedModel
from worker.engine.sampling import row_params
from worker.engine.sampling.sampler import Sampler
from worker.engine.sequence import SampledToken, Sequence


@dataclass(frozen=True, slots=True)
class Round(StepResult):
    """One forward of the model over the row's last token and the proposals ``[proposals]`` for those after it."""

    batch: DraftBatch = field(kw_only=True)
    proposals: mx.array = field(kw_only=True)

    def read(self) -> Iterator[SampledToken]:
        """Wait for the round; the row's new tokens one by one, until the row ends with one or must begin again."""
        (row,) = self.rows.values()
        proposals = cast("list[int]", self.proposals.tolist())
        drawn = read_tokens(self.sampled, ((index, row) for index in range(len(proposals) + 1)))
        accepted = 0
        while accepted < len(proposals) and proposals[accepted] == drawn[accepted].token:
            accepted += 1
        self.batch.settle(proposals, accepted, drawn[accepted].token)
        for index in range(accepted + 1):
            counts = drawn[index].covered or row.full
            yield replace(drawn[index], drafted=index < accepted)
            if row.ended or not counts:
                return


class DraftBatch:
    """What :class:`DecodeBatch` is for a model with a draft model: one row, and several tokens of it per step.

    How many were accepted must be known before the next step begins, so all of a step is in :meth:`sample`, and there
    is nothing to do in :meth:`advance`. ``_unread`` are the tokens that the draft model has still to read, of which the
    model itself has still to read the last.
    """

    def __init__(self, model: LoadedModel, sampler: Sampler) -> None:
        if model.draft is None:
            raise ValueError(f"{model.name} has no draft model")
        self._model = model
        self._target = replace(model, draft=None)
        self._draft = model.draft
        self._sampler = sampler
        self._row: Sequence | None = None
        self._caches: list[Cache] = []
        self._draft_caches: list[Cache] = []
        self._unread: list[int] = []
        self._rounds = 0

    def __len__(self) -> int:
        return 0 if self._row is None else 1

    def sample(self) -> StepResult | None:
        """Start a round; None without a row."""
        row = self._row
        if row is None or row.ended:
            self.clear()
            return None
        count = min(self._model.num_draft_tokens, row.limit - len(row.tokens) - 1)
        proposals, allowed = self._propose(row, count)
        inputs = mx.concatenate([mx.array(self._unread[-1:], dtype=mx.int32), proposals])
        arrays = row_params.build_ahead(row, inputs, self._model.vocab_size)
        logits = self._target.forward(inputs[None], self._caches)[0]
        params = arrays.params if allowed is None else arrays.params | {"allowed": allowed}
        sampled = self._sampler(arrays.features, logits, arrays.state, params)
        mx.async_eval(sampled.outputs(), proposals)
        self._rounds += 1
        if self._rounds % CLEAR_EVERY == 0:
            mx.clear_cache()
        return Round({0: row}, [], sampled, proposals.size, batch=self, proposals=proposals)

    def settle(self, proposals: list[int], accepted: int, token: int) -> None:
        """After a round: forget the proposals from ``accepted`` on; ``token`` follows those before."""
        prompt_cache.trim(self._caches, len(proposals) - accepted)
        if accepted < len(proposals):
            prompt_cache.trim(self._draft_caches, len(proposals) - accepted - 1)
            self._unread = [token]
        else:  # the draft model has not read the last of its own proposals
            self._unread = [*proposals[-1:], token] if proposals else [*self._unread, token]

    def join(self, rows: Items[Sequence], prefilled: Prefilled, inputs: Items[int]) -> None:
        """Take in one row with its prefilled caches and the last token of its prompt."""
        if self._row is not None or len(rows) != 1:
            raise ValueError("with a draft model rows run one at a time")
        (row,) = rows
        row.accepted_draft_tokens = row.accepted_draft_tokens or 0
        self._row = row
        self._caches, self._draft_caches = self._model.split(prefilled.caches)
        self._unread = [*inputs]

    def advance(self) -> None:
        """Nothing is left to make."""

    def launch(self) -> None:
        """Nothing is left to start."""

    def foresee(self) -> list[Sequence]:
        """Which tokens may come is found out with the proposals."""
        return []

    def leave(self, row: Sequence) -> None:
        """Take the row out, which has not ended: it will come back."""
        if self._row is row:
            self.clear()

    def held_bytes(self) -> int:
        """Bytes that the caches take: those of one row are as the scheduler expects them."""
        return 0

    def compact(self) -> None:
        """Nothing is ever idle."""

    def clear(self) -> None:
        """Forget the row and its caches."""
        self._row, self._caches, self._draft_caches = None, [], []

    def _propose(self, row: Sequence, count: int) -> tuple[mx.array, mx.array | None]:
        """``[count]`` tokens that the draft model takes to be the row's next, and what its guide allows at their
        places and the one after, ``[count + 1, words]`` (None: everything).

        A guide must know each proposal before it can say what may follow: they are read one by one.

        Raises:
            GuideError: the row cannot go on.
        """
        proposals = [mx.array([], dtype=mx.int32)]
        arrays = row_params.build([row], self._model.vocab_size, ahead=count)
        features, params = arrays.features - {"logprobs", "top_logprobs"}, arrays.params
        tokens = mx.array([self._unread], dtype=mx.int32)
        ahead = None if (guide := row.guided()) is None else Lookahead(row, guide, self._model.vocab_size)
        for _ in range(count):
            logits = self._draft.forward(tokens, self._draft_caches)[:, -1]
            if ahead is not None:
                params = params | {"allowed": mx.array(ahead.masks[-1][None])}
            sampled = self._sampler(features, logits, arrays.state, params)
            arrays.state = sampled.state
            proposals.append(sampled.inputs)
            tokens = sampled.inputs[:, None]
            if ahead is not None:
                ahead.propose(int(cast("int", sampled.inputs.item())))
        allowed = None if ahead is None else mx.array(np.stack(ahead.masks))
        return mx.concatenate(proposals), allowed


def batch_of(model: LoadedModel, sampler: Sampler) -> DecodeBatch | DraftBatch:
    """An empty batch for rows of this model."""
    return DecodeBatch(model, sampler) if model.draft is None else DraftBatch(model, sampler)
