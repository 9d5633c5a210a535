"""Prompt prefixes worth computing once: which they are, and what is kept of them. No tensors: caches are opaque here.

Lines of a batch mostly begin alike: a system prompt, examples, a document that many questions are asked about. The
latest prompts stand in a radix tree, whose branches are the ends of shared prefixes. A prefix is computed in one row
when the first prompt needs it, kept under a budget of bytes, and every prompt goes on from a copy.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from worker.engine.scheduler import SequenceGroup

LEAST_TOKENS = 32
"""A prefix is this much longer than the next shorter one that is kept, at least."""
LEAST_SAVED = 64
"""Tokens that a prefix spares the other prompts, at least: it costs a forward of one row."""
MOST_SEEN = 1 << 19
"""Tokens of the prompts in the tree; the oldest leave it first."""
MOST_KEPT = 256
"""Prefixes kept, since each prompt is compared with all of them."""
DEFAULT_BYTES = 512 << 20
DEFAULT_PART = 10


def prefix_budget(given: int | None, memory: int | None) -> int:
    """Bytes for prefixes: what is given, else a tenth of the caches' memory, else 512 MiB where that is unknown.

    Raises:
        ValueError: when less than nothing is given.
    """
    if given is None:
        return DEFAULT_BYTES if memory is None else memory // DEFAULT_PART
    if given < 0:
        raise ValueError("prefix_memory must be at least 0; 0 switches the sharing of prefixes off")
    return given if memory is None else min(given, memory)


@dataclass(slots=True, eq=False)
class Prefix:
    """A prefix and, once it is computed, the ``caches`` of one row that holds it; until then ``parent`` is the shorter
    prefix to go on from. It may be evicted before it is used, so who needs it keeps a reference."""

    tokens: tuple[int, ...]
    parent: Prefix | None = None
    caches: Any = None
    size: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(slots=True)
class _Node:
    """A node of the tree, on the path of ``count`` prompts; ``edge`` are the tokens from its parent to it."""

    edge: tuple[int, ...] = ()
    count: int = 0
    children: dict[int, _Node] = field(default_factory=dict)


class PromptTree:
    """A radix tree of the latest prompts, at most ``most`` tokens of them."""

    def __init__(self, most: int = MOST_SEEN) -> None:
        self._most = most
        self._root = _Node()
        self._seen: deque[tuple[int, ...]] = deque()
        self._tokens = 0

    def add(self, prompt: tuple[int, ...]) -> None:
        """Take in a prompt, in place of the oldest ones where there is no room."""
        self._seen.append(prompt)
        self._tokens += len(prompt)
        node, at = self._root, 0
        while at < len(prompt):
            child = node.children.get(prompt[at])
            if child is None:
                node.children[prompt[at]] = _Node(prompt[at:], 1)
                break
            same = common(child.edge, prompt[at : at + len(child.edge)])
            if same < len(child.edge):
                child = _split(node, child, same)
            child.count += 1
            node, at = child, at + same
        while self._tokens > self._most and len(self._seen) > 1:
            self._remove(self._seen.popleft())

    def branches(self, tokens: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """Where other prompts branch off from ``tokens``, or end: the length up to there, and how many others have
        these tokens.

        ``tokens`` is assumed to be in the tree; when it has left the tree, there is one more than the count says.
        """
        node, at = self._root, 0
        while True:
            child = node.children.get(tokens[at]) if at < len(tokens) else None
            if at and (child is None or child.count < node.count):
                yield at, node.count - 1
            if child is None:
                return
            same = common(child.edge, tokens[at : at + len(child.edge)])
            node, at = child, at + same
            if same < len(child.edge):
                yield at, child.count
                return

    def _remove(self, prompt: tuple[int, ...]) -> None:
        self._tokens -= len(prompt)
        node, at = self._root, 0
        while at < len(prompt):
            child = node.children[prompt[at]]
            child.count -= 1
            if not child.count:
                del node.children[prompt[at]]
                return
            node, at = child, at + len(child.edge)


def _split(node: _Node, child: _Node, at: int) -> _Node:
    """Part the edge from ``node`` to ``child``; the new node between them."""
    between = _Node(child.edge[:at], child.count, {child.edge[at]: child})
    node.children[child.edge[0]] = between
    child.edge = child.edge[at:]
    return between


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two tuples have in common at their beginning, by halving: comparing slices is quick."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class PrefixCache:
    """The prefixes of one model: found among its prompts, kept within ``budget`` bytes, the least recently used evicted
    first. A budget of 0 switches the cache off.

    ``cost`` estimates the bytes of a prefix of a number of tokens. ``shorten`` gives the caches of the first tokens of
    a longer prefix, or None for a model whose caches cannot be cut: those serve only the exact tokens they hold.
    """

    def __init__(
        self, budget: int, cost: Callable[[int], int], shorten: Callable[[Any, int], Any] = lambda caches, tokens: None
    ) -> None:
        self.budget = budget
        self._cost = cost
        self._shorten = shorten
        self._index = PromptTree()
        self._kept: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._planned: list[Prefix] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the prefixes that are kept, those still to be computed included."""
        return sum(prefix.size for prefix in self._kept.values())

    def limit(self, budget: int) -> None:
        """Keep within another budget from now on."""
        self.budget = budget
        self._evict()

    def see(self, prompt: tuple[int, ...]) -> None:
        """Take a prompt that will be computed into the tree."""
        if self.budget:
            # The last token is computed by the first step of decoding, so it is no part of what can be shared.
            self._index.add(prompt[:-1])

    def assign(self, wave: Iterable[SequenceGroup]) -> None:
        """Give groups that are about to be prefilled their prefixes, and take those off what they have to compute.

        The first group that needs a prefix pays for it: what is computed on its behalf does not count as ``cached``.
        """
        if not self.budget:
            return
        for group in wave:
            tokens = tuple(group.tokens[: group.length])
            prefix, computed = self._prefix_of(tokens)
            if prefix is not None:
                group.prefix = prefix
                group.length -= len(prefix)
                group.cached = len(prefix) - computed
        self._evict()  # not before: what one group of the wave has planned the next ones need too

    def planned(self) -> list[Prefix]:
        """The prefixes that must be computed before the groups they were given to, in this order; each is given
        once."""
        planned, self._planned = self._planned, []
        return planned

    def computed(self, prefix: Prefix, caches: Any, size: int) -> None:
        """``caches`` of one row, of ``size`` bytes, hold the prefix now."""
        prefix.caches, prefix.size, prefix.parent = caches, size, None
        self._evict()

    def forget(self) -> None:
        """Drop all caches, and remember which prompts came."""
        self._kept.clear()
        self._planned.clear()

    def clear(self) -> None:
        """Drop everything."""
        self.forget()
        self._index = PromptTree()

    def _prefix_of(self, tokens: tuple[int, ...]) -> tuple[Prefix | None, int]:
        """The longest prefix to start from, and how many tokens of it must first be computed."""
        prefix = self._longest(tokens)
        computed = 0
        for length in self._worthwhile(tokens, len(prefix or ())):
            longer = self._new_prefix(tokens[:length], prefix)
            if longer.caches is None:
                computed += length - len(prefix or ())
            prefix = longer
        return prefix, computed

    def _longest(self, tokens: tuple[int, ...]) -> Prefix | None:
        found = (prefix for prefix in self._kept.values() if tokens[: len(prefix)] == prefix.tokens)
        longest = max(found, key=len, default=None)
        if longest is not None:
            self._kept.move_to_end(longest.tokens)
        return longest

    def _worthwhile(self, tokens: tuple[int, ...], start: int) -> Iterator[int]:
        """Lengths beyond ``start`` at which to keep a prefix of ``tokens``."""
        for length, others in self._index.branches(tokens):
            gain = length - start
            if gain >= LEAST_TOKENS and gain * others >= LEAST_SAVED and self._cost(length) <= self.budget:
                yield length
                start = length

    def _new_prefix(self, tokens: tuple[int, ...], parent: Prefix | None) -> Prefix:
        """A new prefix, cut from a longer one where that is possible, else planned to be computed."""
        caches = self._cut(tokens)
        prefix = Prefix(tokens, parent if caches is None else None, caches, self._cost(len(tokens)))
        if caches is None:
            self._planned.append(prefix)
        self._kept[tokens] = prefix
        return prefix

    def _cut(self, tokens: tuple[int, ...]) -> Any:
        for longer in self._kept.values():
            if longer.caches is not None and longer.tokens[: len(tokens)] == tokens:
                return self._shorten(longer.caches, len(tokens))
        return None

    def _evict(self) -> None:
        while self._kept and (self.nbytes > self.budget or len(self._kept) > MOST_KEPT):
            self._kept.popitem(last=False)
