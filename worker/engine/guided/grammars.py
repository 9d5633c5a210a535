"""Compiled grammars of one model: each text is compiled once, and kept as long as there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from jobs.guided.check import parser_limits
from worker.engine.guided.vocabulary import GrammarError, Vocabulary, no_panics

MOST_BYTES = 64 * 2**20
"""What compiled grammars may take together, by an estimate."""
LEAST_BYTES, BYTES_PER_CHARACTER = 64 * 1024, 64
"""What one takes, as far as its text tells: automata grow with use."""


class Grammars:
    """Matchers at the beginning of a text, by the text of their grammar; who uses one takes a ``deep_copy()``, which
    takes microseconds. The first set of tokens is computed here too: of some grammars it takes long. Any thread."""

    def __init__(self, vocabulary: Vocabulary, most_bytes: int = MOST_BYTES) -> None:
        self._vocabulary = vocabulary
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.compiled = 0
        self.nbytes = 0

    def matcher(self, grammar: str) -> Any:
        """The matcher of a grammar, at the beginning; it must not be changed.

        Raises:
            GrammarError: the library refuses the grammar; its words.
        """
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
        found = self._compile(grammar)
        with self._lock:
            if grammar not in self._kept:
                self._kept[grammar] = found
                self.nbytes += _size(grammar)
            while self.nbytes > self._most_bytes and len(self._kept) > 1:
                old, _ = self._kept.popitem(last=False)
                self.nbytes -= _size(old)
        return found

    def _compile(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        with no_panics():
            found = LLMatcher(self._vocabulary.table, grammar, log_level=0, limits=parser_limits())
        if not found.is_error():
            self._vocabulary.compute([found])
        if found.is_error():
            raise GrammarError(found.get_error().strip())
        self.compiled += 1
        return found


def _size(grammar: str) -> int:
    return LEAST_BYTES + BYTES_PER_CHARACTER * len(grammar)
