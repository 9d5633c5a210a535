"""The tokens that rows may draw next, as one array: computed on the host, all grammars at once."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

from worker.engine.guided.guide import Guide
from worker.engine.guided.vocabulary import WORD
from worker.engine.sequence import Sequence

ALL = 0xFFFFFFFF


class GuideError(ValueError):
    """A row's constraint is too much for the grammar library. The message says where; ``field`` is what asks for it."""

    def __init__(self, row: Sequence) -> None:
        guide = row.guide
        reason = "" if guide is None else guide.error
        super().__init__(f"the constraint cannot be followed after {len(row.tokens)} tokens: {reason}")
        self.field = None if guide is None else guide.plan.field


def none_allowed(row: Sequence) -> GuideError:
    """What to say of a row whose constraint left it no token: it allows none that may be drawn, or the model has
    ruled out those it allows."""
    if row.guide is not None and row.guide.error is None:
        row.guide.error = "no token that it allows can be drawn"
    return GuideError(row)


class Masks:
    """What the rows of a batch may draw next, for logits of a ``width``. It is a function of each row's tokens:
    :meth:`foresee` only does early what :meth:`of` would do."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._known: list[tuple[Sequence, int] | None] = []
        self._masks = np.zeros((0, 0), dtype=np.uint32)

    def foresee(self, slots: Items[Sequence | None]) -> list[Sequence]:
        """Compute the masks of rows that have not ended; the rows that cannot go on."""
        rows = [row if row is not None and row.line.guide is not None and not row.ended else None for row in slots]
        self._known = [None if row is None else (row, len(row.tokens)) for row in rows]
        if not any(rows):
            return []
        self._masks = masks_of([None if row is None else row.guided() for row in rows], self._width)
        return [row for row in rows if row is not None and row.guide is not None and row.guide.error is not None]

    def of(self, slots: Items[Sequence | None], count: int) -> NDArray[np.uint32]:
        """``[count, words]``: the masks of these rows; idle ones may have any token.

        Raises:
            GuideError: a row cannot go on.
        """
        wanted = [(row, len(row.tokens)) if row is not None and row.line.guide is not None else None for row in slots]
        if len(wanted) != len(self._known) or any(
            now is not None and now != known for now, known in zip(wanted, self._known, strict=True)
        ):
            for failed in self.foresee(slots):
                raise GuideError(failed)
        masks = self._masks if any(wanted) else np.zeros((0, -(-self._width // WORD)), dtype=np.uint32)
        missing = count - len(masks)
        return np.pad(masks, ((0, missing), (0, 0)), constant_values=ALL) if missing else masks


def masks_of(guides: Items[Guide | None], width: int) -> NDArray[np.uint32]:
    """``[guides, words]``: what may come next after the tokens that each guide has followed; everything where there is
    none. Guides that cannot go on have an ``error`` afterwards."""
    masks = np.full((len(guides), -(-width // WORD)), ALL, dtype=np.uint32)
    live = [(index, guide) for index, guide in enumerate(guides) if guide is not None and guide.error is None]
    asked = [(index, guide, guide.matcher) for index, guide in live if guide.matcher is not None]
    complete: dict[int, bool] = {}
    if asked:
        found, done = asked[0][1].plan.vocabulary.compute([matcher for _, _, matcher in asked])
        for (index, guide, matcher), bits, ended in zip(asked, found, done, strict=True):
            masks[index] = bits
            complete[index] = bool(ended)
            if matcher.is_error():
                guide.error = matcher.get_error().strip()
    for index, guide in live:
        guide.shape(masks[index], complete=complete.get(index, False))
    return masks


class Lookahead:
    """What a row may draw next and after tokens that are only proposed: ``masks`` has an entry of ``[words]`` for each
    place. After a proposal that may not come, or ends the text, there is nothing to forbid.

    Raises:
        GuideError: the row cannot go on.
    """

    def __init__(self, row: Sequence, guide: Guide, width: int) -> None:
        self._guide: Guide | None = guide.copy()
        self._tokens = [*row.tokens]
        self._width = width
        self.masks = [*masks_of([self._guide], width)]
        if self._guide is not None and self._guide.error is not None:
            guide.error = self._guide.error
            raise GuideError(row)

    def propose(self, token: int) -> None:
        """The next token is proposed to be this one."""
        guide = self._guide
        if guide is not None:
            self._tokens.append(token)
            if token < 0 or (guide.plan.constrained and token in guide.plan.eos):
                self._guide = None
            else:
                guide.follow(self._tokens)
                self._guide = None if guide.error is not None else guide
        self.masks.extend(masks_of([self._guide], self._width))
