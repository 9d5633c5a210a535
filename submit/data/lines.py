"""Lines of a table: each row through the template, with the columns that come back as its metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from jobs.errors import LineError, RefusedError
from jobs.params import did_you_mean
from jobs.templates.values import is_gap, plain
from submit.data.extras import require
from submit.data.keep import Keeper
from submit.data.order import KEEP_BYTES, TableOrder
from submit.data.select import Passes, selected
from submit.data.tables.table import Table
from submit.input.bare_rows import is_line_field, no_template
from submit.status.text import plural, printable
from submit.templates.fields import field_value

if TYPE_CHECKING:
    from jobs.templates.sandbox import Sandbox
    from submit.templates.line import LineTemplate

Line = tuple[int, bytes | LineError]

LINE_FIELDS = frozenset(("prompt", "messages", "body"))


class TableLines:
    """What is submitted of a table: lines to iterate over once, as those of a file of prompts.

    Raises:
        RefusedError: the template is none, or does not fit the table's columns; or there is none, and the columns are
            no fields of a line.
    """

    def __init__(self, table: Table, order: TableOrder, model: str | None = None) -> None:
        self.name = table.name
        self.size = table.size
        self.order = order
        self.table = table
        self.kept = Keeper(order.keep, table.columns, _binary(table), _floats(table))
        self._template: LineTemplate | None = None
        self._passes: Passes | None = None
        self._digest: str | None = None
        self._used: set[str | None] = set()
        self._whole_row = False
        if order.template is not None or order.where is not None:
            self._compile(order, model)
        if order.template is None and table.columns is not None:
            _see_that_they_are_lines(table)
        self._narrow()
        if order.sample is not None and getattr(table, "once", False):
            raise RefusedError("a sample reads the rows twice: give a list of them, not a generator")
        if order.id_column is not None and table.columns is not None and order.id_column not in table.columns:
            raise RefusedError(
                f"--id-column: '{order.id_column}' is no column of {table.name}"
                f"{did_you_mean(order.id_column, table.columns)} (columns {', '.join(table.columns):.300})"
            )

    def __enter__(self) -> TableLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.table.close()

    @property
    def bytes_read(self) -> int:
        return self.table.bytes_read

    @property
    def digest(self) -> str:
        """Names the table's content; what is made of it is in :attr:`dataset`."""
        if self._digest is None:
            self._digest = self.table.digest()
        return self._digest

    @property
    def dataset(self) -> dict[str, Any]:
        """What a batch remembers of its table: the order, and the types of its columns."""
        import base64

        types = self.table.types
        shown: dict[str, Any] = {"order": self.order.as_dict(), "columns": list(self.table.columns or ())}
        if binary := _binary(self.table):
            shown["binary"] = sorted(binary)
        if floats := _floats(self.table):
            shown["floats"] = sorted(floats)
        return shown if types is None else {**shown, "types": base64.b64encode(types).decode()}

    def __iter__(self) -> Iterator[Line]:
        repeat = self.order.repeat
        for number, row in selected(self.table, self.order, self._passes):
            line = self._line(number, row)
            if repeat == 1:
                yield number, line if isinstance(line, LineError) else _encoded(line)
                continue
            for turn in range(1, repeat + 1):
                if isinstance(line, LineError):
                    wrong = LineError(line.code, line.field, line.message, line_id=f"line-{number}#{turn}")
                    wrong.metadata = line.metadata
                    yield number, wrong
                else:
                    name = "custom_id" if "body" in line else "id"
                    yield number, _encoded({**line, name: f"{line.get(name, f'line-{number}')}#{turn}"})

    def notes(self) -> list[str]:
        """Which cells do not come back with the results."""
        said = []
        if binary := sorted(_binary(self.table)):
            said.append(f"binary columns do not come back: {printable(', '.join(binary)):.200}")
        for name, count in self.kept.dropped.items():
            said.append(
                f"{plural(count, 'cell')} of '{printable(name):.80}' with more than {KEEP_BYTES >> 10} KiB will not "
                "come back: --keep-columns all brings them"
            )
        return said

    # --- rows to lines ---

    def _line(self, number: int, row: dict[str, Any] | LineError) -> dict[str, Any] | LineError:
        if isinstance(row, LineError):
            return row
        if self._template is None:
            return self._own_line(row)
        from jobs.templates.sandbox import RowError

        try:
            line = self._template.line(row)
        except RowError as error:
            wrong = LineError(error.code, error.column, str(error), line_id=self._id_of(row))
            wrong.metadata = self._written(row)
            return wrong
        line["metadata"] = {**self.kept.of(row), **line.get("metadata", {})}
        if "id" not in line and (given := self._id_of(row)) is not None:
            line["id"] = given
        return line

    def _written(self, row: dict[str, Any]) -> dict[str, Any]:
        """The cells of a row that come back, as JSON has them; none where one cannot be written."""
        try:
            written = orjson.dumps(self.kept.of(row), default=plain, option=orjson.OPT_NON_STR_KEYS)
        except (orjson.JSONEncodeError, TypeError):
            return {}
        cells: dict[str, Any] = orjson.loads(written)
        return cells

    def _own_line(self, row: dict[str, Any]) -> dict[str, Any]:
        """The line of a row whose columns are fields of lines: an empty cell is no field."""
        if getattr(self.table, "of_texts", False):
            row = {name: field_value(name, value) for name, value in row.items() if value}
        line = {name: value for name, value in row.items() if not is_gap(value)}
        if (given := self._id_of(row)) is not None:
            line["custom_id" if "body" in line else "id"] = given
        return line

    def _id_of(self, row: Mapping[str, Any]) -> str | None:
        if self.order.id_column is None or (value := row.get(self.order.id_column)) is None:
            return None
        return str(value)

    # --- columns ---

    def _narrow(self) -> None:
        """Have a table of Arrow read no columns but those that are used."""
        order, wanted = self.order, getattr(self.table, "wanted", None)
        if wanted is None or self._template is None:
            return
        if self.kept.names is None or self._whole_row:
            return
        used = self._used | set(self.kept.names) | {order.id_column}
        self.table.wanted = [name for name in wanted if name in used]  # type: ignore[attr-defined]

    # --- templates ---

    def _compile(self, order: TableOrder, model: str | None) -> None:
        require("jinja2", "a template")
        from jobs.templates.sandbox import Sandbox
        from submit.templates.line import LineTemplate
        from submit.templates.tokens import Cutter

        sandbox = Sandbox({"truncate_tokens": Cutter(model)})
        if order.template is not None:
            self._template = LineTemplate(order.template, sandbox, order.named)
            self._see_that_it_fits(self._template)
        if order.where is not None:
            self._passes = self._condition(order.where, sandbox)

    def _see_that_it_fits(self, template: LineTemplate) -> None:
        self._used |= template.names
        self._whole_row |= template.whole_row
        if self.table.columns is None:
            return
        template.fits(self.table.columns, self.table.name)
        if shown := sorted(template.names & _binary(self.table)):
            raise RefusedError(
                f"{self.order.named}: '{shown[0]}' of {self.table.name} is binary, which no text can show"
            )

    def _condition(self, source: str, sandbox: Sandbox) -> Passes:
        from jobs.templates.sandbox import RowError
        from submit.templates.line import LineTemplate

        if "{{" in source or "{%" in source:
            raise RefusedError("--where is an expression without braces, such as: question | length > 20")
        condition = LineTemplate({"prompt": [f"{{{{ {source} }}}}"]}, sandbox, "--where")
        self._see_that_it_fits(condition)

        def passes(row: dict[str, Any]) -> bool:
            try:
                return bool(condition.line(row)["prompt"][0])
            except RowError as error:
                column = None if error.column == "prompt" else error.column
                remedy = "" if "NoneType" not in str(error) else "; of empty cells ask first: x is not none and ..."
                raise LineError(error.code, column, f"--where: {error}{remedy}") from None

        return passes


def _binary(table: Table) -> frozenset[str]:
    binary: frozenset[str] = getattr(table, "binary", frozenset())
    return binary


def _floats(table: Table) -> frozenset[str]:
    floats: frozenset[str] = getattr(table, "floats", frozenset())
    return floats


def _encoded(line: dict[str, Any]) -> bytes | LineError:
    try:
        return orjson.dumps(line, default=plain, option=orjson.OPT_NON_STR_KEYS)
    except (orjson.JSONEncodeError, TypeError) as error:
        return LineError("invalid_type", None, f"cannot be written as JSON: {error!s:.200}")


def _see_that_they_are_lines(table: Table) -> None:
    """Refuse a table whose columns are no fields of a line, with the command that would work."""
    columns = table.columns or ()
    if LINE_FIELDS & set(columns) and all(is_line_field(name) for name in columns):
        return
    raise RefusedError(no_template(table.name, columns, columns, _binary(table)))
