"""How long the texts of a batch are and how fast they came: histograms of its records, or of an even sample."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jobs.store.store import Store
from serve.page.records import Row, count_finished, decode_row, records_between

SAMPLE = 2000
PARTS = 20
BINS = 24
AGAIN_S = 5.0
KEPT = 64


class Spreads:
    """Looks at a batch's records at most every few seconds. Threads: any; holds the lock."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, int, dict[str, Any]]] = OrderedDict()

    def of(self, batch_id: str) -> dict[str, Any]:
        """The histograms of a batch's records so far, and how they ended."""
        total = count_finished(self._store, batch_id)
        with self._lock:
            kept = self._kept.get(batch_id)
        if kept is not None and (kept[1] == total or self._clock() - kept[0] < AGAIN_S):
            return kept[2]
        made = spread(list(sample(self._store, batch_id, total)), total)
        with self._lock:
            self._kept[batch_id] = (self._clock(), total, made)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def sample(store: Store, batch_id: str, total: int) -> Iterator[Row]:
    """All records of a batch, or runs of neighbours that are evenly spread over it."""
    if total <= SAMPLE:
        places = [(0, total)]
    else:
        length = SAMPLE // PARTS
        places = [(start := part * (total - length) // (PARTS - 1), start + length) for part in range(PARTS)]
    for start, end in places:
        for record in records_between(store, batch_id, start, end):
            yield decode_row(record.raw)


def spread(rows: Sequence[Row], total: int) -> dict[str, Any]:
    """What the page draws of these records."""
    good = [row for row in rows if row.error is None]
    speeds = [row.stats.tokens_per_second for row in good if row.stats.tokens_per_second is not None]
    first = [row.stats.time_to_first_token_s for row in good if row.stats.time_to_first_token_s is not None]
    stops = Counter(choice.stop_reason for row in good for choice in row.completions)
    return {
        "records": len(rows),
        "of": total,
        "stops": dict(stops.most_common()),
        "errors": dict(Counter(row.error.code for row in rows if row.error is not None).most_common()),
        "completion_tokens": histogram([row.usage.completion_tokens for row in good]),
        "prompt_tokens": histogram([row.usage.prompt_tokens for row in good]),
        "tokens_per_second": histogram(speeds),
        "time_to_first_token_s": histogram(first),
    }


def histogram(values: Sequence[float], bins: int = BINS) -> dict[str, Any] | None:
    """Counts of values in at most so many bins of equal width from ``low`` to ``high``, with the median and the 95th
    percentile; None where there are no values."""
    if not values:
        return None
    ranked = sorted(values)
    low, high = ranked[0], ranked[-1]
    if high - low < bins and all(isinstance(value, int) for value in values):
        bins, width = int(high - low) + 1, 1.0  # each number has its own
    else:
        bins, width = (bins, (high - low) / bins) if high > low else (1, 1.0)
    counts = [0] * bins
    for value in ranked:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return {
        "low": low,
        "high": high,
        "counts": counts,
        "median": ranked[len(ranked) // 2],
        "p95": ranked[min(int(len(ranked) * 0.95), len(ranked) - 1)],
        "values": len(ranked),
    }
