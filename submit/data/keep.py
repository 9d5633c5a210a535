"""Which columns of a row come back with its result: they travel as the line's metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from jobs.errors import RefusedError
from jobs.params import did_you_mean
from jobs.templates.values import spelled
from submit.data.order import KEEP_BYTES

Kept = Callable[[Mapping[str, Any]], dict[str, Any]]
SHORT = KEEP_BYTES // 4
"""Characters that surely take no more than the bytes allowed."""


class Keeper:
    """The cells to keep of each row. ``dropped`` counts those that were too long, by column."""

    def __init__(
        self,
        keep: str | None,
        columns: tuple[str, ...] | None,
        binary: frozenset[str] = frozenset(),
        floats: frozenset[str] = frozenset(),
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._binary, self._floats = binary, floats
        self.names: tuple[str, ...] | None = None
        """Those that are named; None: all."""
        self._bounded = keep is None
        if keep in (None, "all"):
            return
        self.names = () if keep == "none" else tuple(name.strip() for name in str(keep).split(",") if name.strip())
        for name in self.names:
            if columns is not None and name not in columns:
                raise RefusedError(
                    f"--keep-columns: '{name}' is no column{did_you_mean(name, columns)} "
                    f"(columns {', '.join(columns):.300})"
                )
            if name in binary:
                raise RefusedError(f"--keep-columns: '{name}' is binary, which results cannot hold; leave it out")

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The cells of a row that come back. Those of columns of floats are as JSON has them."""
        kept = self._chosen(row)
        for name in self._floats:
            if name in kept:
                kept[name] = spelled(kept[name])
        return kept

    def _chosen(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.names is not None:
            return {name: row[name] for name in self.names if name in row}
        kept = {name: value for name, value in row.items() if name not in self._binary} if self._binary else dict(row)
        if self._bounded:
            for name in [name for name, value in kept.items() if _may_be_long(value) and _is_long(value)]:
                kept[name] = None
                self.dropped[name] += 1
        return kept


def _may_be_long(value: Any) -> bool:
    kind = type(value)
    return len(value) > SHORT if kind is str else kind not in (int, float, bool, type(None))


def _is_long(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) > SHORT and len(value.encode("utf-8", "surrogatepass")) > KEEP_BYTES
    if isinstance(value, list | dict):
        from jobs.templates.budget import BudgetError
        from jobs.templates.values import json_of

        try:
            return len(json_of(value)) > KEEP_BYTES
        except (BudgetError, TypeError, ValueError):
            return True
    return False
