"""Which texts are scored together, and what of them is computed once. Policy only: no tensors.

Texts of a file mostly come in families: the choices of one question, questions behind the same examples. The choices
of a question go on from one computation of it, its *stem*; what many stems begin with is a prefix like that of other
prompts. The stems are found in the sorted texts, among which families are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Items
from dataclasses import dataclass, field
from itertools import pairwise

from worker.engine.caches.prefix_cache import LEAST_TOKENS, common
from worker.engine.scheduler import SIMILAR_RATIO, SIMILAR_SLACK
from worker.engine.scoring.item import Item

ROW_TOKENS = 16
"""What a row costs beside its tokens, in tokens: a stem must spare more."""


@dataclass(slots=True, eq=False)
class Stem:
    """``items`` that go on from the same ``length`` tokens; one of a single item is all that is computed of it."""

    items: list[Item]
    length: int

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.items[0].tokens[: self.length]

    @property
    def unscored(self) -> int:
        """Tokens at the beginning after which nothing is scored: they may be another's."""
        return min(self.length, *(item.first - 1 for item in self.items))

    @property
    def computed(self) -> int:
        """Tokens that are computed of it and its items."""
        return self.length + sum(item.length - self.length for item in self.items)

    @property
    def distinct(self) -> int:
        """The same, where what its items share is computed once, wherever they part."""
        computed = sorted(item.text[:-1] for item in self.items)
        return len(computed[0]) + sum(len(text) - common(last, text) for last, text in pairwise(computed))

    @property
    def generates(self) -> bool:
        """Whether a text follows one of its items, for which caches are needed."""
        return any(item.line.generates and not item.draws for item in self.items)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(item.tokens) for item in self.items)


@dataclass(slots=True)
class Pass:
    """``stems`` that are scored together. ``packed`` is how many tokens they have as one packed sequence, at most; 0:
    they are rows."""

    stems: list[Stem]
    packed: int = 0

    @property
    def items(self) -> list[Item]:
        return [item for stem in self.stems for item in stem.items]


@dataclass(slots=True, eq=False)
class _Node:
    """Texts that share ``depth`` tokens: those of the nodes below it, and some of its own."""

    depth: int
    children: list[_Node] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    def all_items(self) -> Iterator[Item]:
        yield from self.items
        for child in self.children:
            yield from child.all_items()


def stems(items: Items[Item], *, sharing: bool = True) -> list[Stem]:
    """The items in families, so that about as few tokens as possible are computed. Without ``sharing`` each is its
    own."""
    if not sharing:
        return [alone(item) for item in items]
    return _best(_tree(sorted(items, key=lambda item: item.tokens)), 0)[1]


def similar(shortest: int, length: int, *, padding: bool) -> bool:
    """Whether rows of these lengths may be in one batch."""
    if not padding:
        return shortest == length
    return length <= shortest * SIMILAR_RATIO + SIMILAR_SLACK


def alone(item: Item) -> Stem:
    """The stem of a single item."""
    return Stem([item], item.length)


def _tree(items: Items[Item]) -> _Node:
    """The radix tree of sorted items: its nodes are where some of them part."""
    path = [_Node(0)]
    for place, item in enumerate(items):
        before = _shared(items[place - 1], item) if place else 0
        after = _shared(item, items[place + 1]) if place + 1 < len(items) else 0
        path = _climb(path, before)
        if after > path[-1].depth:
            node = _Node(after)
            path[-1].children.append(node)
            path.append(node)
        path[-1].items.append(item)
    return path[0]


def _climb(path: list[_Node], depth: int) -> list[_Node]:
    """The path as far down as ``depth``, where there is a node at its end."""
    last = None
    while path[-1].depth > depth:
        last = path.pop()
    if last is not None and path[-1].depth < depth:
        between = _Node(depth, [last])
        path[-1].children[-1] = between
        path.append(between)
    return path


def _shared(one: Item, other: Item) -> int:
    """How much two items have in common of what is computed of them."""
    return min(common(one.tokens, other.tokens), one.length, other.length)


def _best(node: _Node, above: int) -> tuple[int, list[Stem]]:
    """What a node's items cost beyond the ``above`` tokens that are there, and in which stems: one for all of them, or
    those that its children and its own items are best in."""
    items = list(node.all_items())
    own = [item.length - node.depth for item in items if item.length > node.depth]
    together = ROW_TOKENS + node.depth - above + sum(length + ROW_TOKENS for length in own)
    # Stems do not share with each other, but for a prefix that is worth keeping and after which nothing is scored.
    gain = node.depth - above
    kept = gain >= LEAST_TOKENS and all(item.first - 1 >= node.depth for item in items)
    below = node.depth if kept else above
    parts = [_best(child, below) for child in node.children]
    parts += [(ROW_TOKENS + item.length - below, [alone(item)]) for item in node.items]
    apart = sum(cost for cost, _ in parts) + (gain if kept else 0)
    if len(items) > 1 and together < apart:
        return together, [Stem(items, node.depth)]
    return apart, [stem for _, found in parts for stem in found]
