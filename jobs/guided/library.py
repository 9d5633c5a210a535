"""The grammar library: what it may take, and what it does not expect of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or is too much for the library."""


def parser_limits() -> LLParserLimits:
    """What compiling and walking one grammar may take; the library's own numbers, where nothing else is measured. An
    object has four items in a row for each property that may be missing."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=100_000, max_items_in_row=10_000, verbose_errors=False)


@contextmanager
def no_panics() -> Iterator[None]:
    """What the library does not expect of itself becomes an error like any other: it would end the thread.

    Raises:
        GrammarError: it happened.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise GrammarError(f"the grammar library fails: {error}") from error
