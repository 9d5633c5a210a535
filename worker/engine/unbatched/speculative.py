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

from worker.engine.caches import prompt_cache
from worker.engine.caches.prompt_cache import Cache
from worker.engine.decode import CLEAR_EVERY, DecodeBatch, Results, SampledToken, StepResult
from worker.engine.loading.model import LoadedModel
from worker.engine.sampling import row_params
from worker.engine.sampling.sampler import Sampler
from worker.engine.sequence import Sequence

__all__ = ["DraftBatch", "batch_of"]


@dataclass(slots=True, eq=False)
class Place:
    """The row that decodes and its caches. ``unread`` are the tokens that the draft model has still to read, of which
    the model itself has still to read the last."""

    row: Sequence
    caches: list[Cache]
    draft_caches: list[Cache]
    unread: list[int]

    def settle(self, proposals: list[int], accepted: int, token: int) -> None:
        """After a round: forget the proposals from ``accepted`` on; ``token`` follows those before."""
        prompt_cache.trim(self.caches, len(proposals) - accepted)
        if accepted < len(proposals):
            prompt_cache.trim(self.draft_caches, len(proposals) - accepted - 1)
            self.unread = [token]
        else:  # the draft model has not read the last of its own proposals
            self.unread = [*proposals[-1:], token] if proposals else [*self.unread, token]


@dataclass(frozen=True, slots=True)
class Round(StepResult):
    """One forward of the model over the row's last token and the proposals ``[proposals]`` for those after it."""

    place: Place = field(kw_only=True)
    proposals: mx.array = field(kw_only=True)

    def read(self) -> Iterator[SampledToken]:
        """Wait for the round; the row's new tokens one by one, until the row ends with one or must begin again."""
        place, row = self.place, self.place.row
        results = Results(self.sampled)
        proposals = cast("list[int]", self.proposals.tolist())
        accepted = 0
        while accepted < len(proposals) and proposals[accepted] == results.tokens[accepted]:
            accepted += 1
        place.settle(proposals, accepted, results.tokens[accepted])
        for index in range(accepted + 1):
            drawn = replace(results.token_of(index, row), drafted=index < accepted)
            yield drawn
            if row.ended or not drawn.covered:
                return


class DraftBatch:
    """What :class:`DecodeBatch` is for a model with a draft model: one row, and several tokens of it per step.

    How many were accepted must be known before the next step begins, so all of a step is in :meth:`sample`, and there
    is nothing to do in :meth:`advance`.
    """

    def __init__(self, model: LoadedModel, sampler: Sampler) -> None:
        if model.draft is None:
            raise ValueError(f"{model.name} has no draft model")
        self._model = model
        self._target = replace(model, draft=None)
        self._draft = model.draft
        self._sampler = sampler
        self._place: Place | None = None
        self._rounds = 0

    def __len__(self) -> int:
        return 0 if self._place is None else 1

    def sample(self) -> StepResult | None:
        """Start a round; None without a row."""
        place = self._place
        if place is None or place.row.ended:
            self._place = None
            return None
        row = place.row
        proposals = self._propose(place, min(self._model.num_draft_tokens, row.limit - len(row.tokens) - 1))
        inputs = mx.concatenate([mx.array(place.unread[-1:], dtype=mx.int32), proposals])
        arrays = row_params.build_ahead(row, inputs, self._model.vocab_size)
        logits = self._target.forward(inputs[None], place.caches)[0]
        sampled = self._sampler(arrays.features, logits, arrays.state, arrays.params)
        mx.async_eval(sampled.outputs(), proposals)
        self._rounds += 1
        if self._rounds % CLEAR_EVERY == 0:
            mx.clear_cache()
        return Round({0: row}, [], sampled, proposals.size, place=place, proposals=proposals)

    def join(self, rows: Items[Sequence], caches: list[Cache], inputs: Items[int]) -> None:
        """Take in one row with its prefilled caches and the last token of its prompt."""
        if self._place is not None or len(rows) != 1:
            raise ValueError("with a draft model rows run one at a time")
        (row,) = rows
        row.accepted_draft_tokens = row.accepted_draft_tokens or 0
        self._place = Place(row, *self._model.split(caches), [*inputs])

    def advance(self) -> None:
        """Nothing is left to start."""

    def leave(self, row: Sequence) -> None:
        """Take the row out, which has not ended: it will come back."""
        if self._place is not None and self._place.row is row:
            self.clear()

    def clear(self) -> None:
        """Forget the row and its caches."""
        self._place = None

    def _propose(self, place: Place, count: int) -> mx.array:
        """``[count]`` tokens that the draft model takes to be the row's next."""
        proposals = [mx.array([], dtype=mx.int32)]
        arrays = row_params.build([place.row], self._model.vocab_size, ahead=count)
        features = arrays.features - {"logprobs", "top_logprobs"}
        tokens = mx.array([place.unread], dtype=mx.int32)
        for _ in range(count):
            logits = self._draft.forward(tokens, place.draft_caches)[:, -1]
            sampled = self._sampler(features, logits, arrays.state, arrays.params)
            arrays.state = sampled.state
            proposals.append(sampled.inputs)
            tokens = sampled.inputs[:, None]
        return mx.concatenate(proposals)


def batch_of(model: LoadedModel, sampler: Sampler) -> DecodeBatch | DraftBatch:
    """An empty batch for rows of this model."""
    return DecodeBatch(model, sampler) if model.draft is None else DraftBatch(model, sampler)
