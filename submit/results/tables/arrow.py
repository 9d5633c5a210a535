"""Records as batches of Arrow: the columns of the rows they came from, with their types, and what came of them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from jobs.errors import RefusedError
from submit.results.tables.cells import ALL, TableRecord, json_cells, json_names, result_columns, rows_cells
from submit.results.tables.restore import array_of

BATCH_ROWS = 5000
BATCH_BYTES = 16 << 20
TOOL_CALLS = pa.list_(
    pa.struct([("id", pa.string()), ("type", pa.string()),
               ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())]))])
)  # fmt: skip
SCORE = pa.struct([("logprob", pa.float64()), ("tokens", pa.int64()), ("is_greedy", pa.bool_())])
TOKEN = [("token", pa.string()), ("id", pa.int64()), ("logprob", pa.float64())]
BEST = pa.list_(pa.struct(TOKEN))
TYPES: dict[str, pa.DataType] = {
    "completion": pa.string(), "reasoning": pa.string(), "stop_reason": pa.string(), "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(), "seed": pa.uint64(), "model": pa.string(), "valid": pa.bool_(),
    "tool_calls": TOOL_CALLS, "score": SCORE, "error": pa.string(), "id": pa.string(), "passed": pa.bool_(),
    "tries": pa.int64(), "choice": pa.int64(),
    "logprobs": pa.list_(pa.struct([*TOKEN, ("top_logprobs", BEST)])),
    "prompt_logprobs": pa.list_(pa.struct([*TOKEN, ("rank", pa.int64()), ("top", BEST)])),
}  # fmt: skip
"""Of the columns of results."""


class ArrowRows:
    """Collects records, and gives a batch of them now and then.

    ``rows`` are the types of the columns that rows keep, ``names`` the names of those of results by what they hold,
    ``keys`` the types of keys of texts that are JSON objects.
    """

    def __init__(
        self, rows: dict[str, pa.DataType], names: dict[str, str], keys: dict[str, pa.DataType] | None = None
    ) -> None:
        self._rows, self._names, self._keys = rows, names, keys or {}
        results = {shown: TYPES[name] for name, shown in names.items()}
        shown_keys = json_names(self._keys, (*rows, *results))
        self.schema = pa.schema({**rows, **results, **{shown_keys[key]: kind for key, kind in self._keys.items()}})
        self._places = [(name, ALL.index(name)) for name in names]
        self._records: list[TableRecord] = []
        self._count = self._size = 0

    def put(self, record: TableRecord, size: int) -> pa.RecordBatch | None:
        """Take in a record of ``size`` bytes; the batch, if it is full."""
        self._records.append(record)
        self._count += 1 if record.choices is None else len(record.choices)
        self._size += size
        return self.rest() if self._count >= BATCH_ROWS or self._size >= BATCH_BYTES else None

    def rest(self) -> pa.RecordBatch | None:
        """What was not given yet; None where there is nothing.

        Raises:
            RefusedError: a value does not fit its column's type.
        """
        if not self._records:
            return None
        records, self._records, self._count, self._size = self._records, [], 0, 0
        cells = rows_cells(records)
        if any(record.choices is not None for record in records):
            texts = [1 if record.choices is None else len(record.choices) for record in records]
            cells = [row for row, count in zip(cells, texts, strict=True) for _ in range(count)]
        columns = [self._column(name, kind, cells) for name, kind in self._rows.items()]
        results = result_columns(records)
        columns += [pa.array(results[place], TYPES[name]) for name, place in self._places]
        if self._keys:
            said = [json_cells(text) for text in results[0]]
            columns += [self._column(key, kind, said) for key, kind in self._keys.items()]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _column(self, name: str, kind: pa.DataType, rows: list[dict[str, Any]]) -> pa.Array:
        values = [cells.get(name) for cells in rows]
        try:
            return array_of(values, kind)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise RefusedError(
                f"the column '{name}' came back with a value that is no {kind}: {error!s:.200}"
            ) from None
