"""The template of a line: every text in it is a template of its own, compiled once, and filled in row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jobs.errors import RefusedError
from jobs.params import did_you_mean
from jobs.templates.filters import chat
from jobs.templates.sandbox import Compiled, RowError, Sandbox
from jobs.templates.values import is_gap
from submit.status.text import printable
from submit.templates.fields import TEXTS, field_value

ROW = "row"
"""The name of the whole row in templates, unless a column has it: ``{{ row['a name'] }}``."""

Row = Mapping[str, Any]
Fill = Callable[[Row], Any]
"""Gives a field's value for a row."""


class LineTemplate:
    """A template of lines: ``fields`` are those of a line, whose texts are templates.

    Raises:
        RefusedError: a template is none, or the line would have no prompt.
    """

    def __init__(self, fields: Mapping[str, Any], sandbox: Sandbox, source: str) -> None:
        self._sandbox, self._source = sandbox, source
        self._templates: list[Compiled] = []
        if not {"prompt", "messages", "body"} & fields.keys():
            raise RefusedError(f"{source}: has neither 'prompt' nor 'messages'")
        self._fills = [(name, self._field(name, value)) for name, value in fields.items()]
        names = {name for template in self._templates for name in template.names}
        self.whole_row = ROW in names
        """Whether it may ask for any column."""
        self.names = frozenset(names - {ROW})
        """The columns it asks for."""
        self.needed = frozenset(name for template in self._templates for name in template.names - template.guarded)
        """Of these, those that it cannot do without."""

    def fits(self, columns: Iterable[str], what: str) -> None:
        """See that a table with these columns has those that are asked for.

        Raises:
            RefusedError: it lacks one.
        """
        known = tuple(columns)
        for name in sorted(self.needed - {ROW} - set(known)):
            where = next(template.where for template in self._templates if name in template.names)
            meant, shown = did_you_mean(name, known), printable(", ".join(known))
            raise RefusedError(f"{where}: '{name}' is no column of {what}{meant} (columns {shown:.300})")

    def line(self, row: Row) -> dict[str, Any]:
        """The fields of the line of a row.

        Raises:
            RowError: the row does not fit; ``column`` is the one at fault, or the line's field.
            RefusedError: a template asks for more than a row may cost.
        """
        values = {**row, ROW: row} if self.whole_row and ROW not in row else row
        line: dict[str, Any] = {}
        for name, fill in self._fills:
            try:
                value = fill(values)
            except RowError as error:
                raise RowError(str(error), error.column or name, missing=error.missing) from None
            if not is_gap(value):
                line[name] = value
        return line

    # --- compiling ---

    def _compiled(self, source: str, where: str) -> Compiled:
        template = Compiled(self._sandbox, source, where)
        self._templates.append(template)
        return template

    def _field(self, name: str, value: Any) -> Fill:
        where = self._source if self._source.startswith("--") else f"{self._source}, '{name}'"
        if name == "messages":
            return self._messages(value, where)
        if not isinstance(value, str):
            return self._tree(value, where)
        if not _is_template(value):
            return lambda row: value
        template = self._compiled(value, where)
        if name in TEXTS:
            return template.text
        return lambda row: field_value(name, template.value(row))

    def _tree(self, value: Any, where: str) -> Fill:
        """A value of JSON in which texts are templates: one that is an expression alone stays what it gives."""
        if isinstance(value, str):
            return self._compiled(value, where).value if _is_template(value) else lambda row: value
        if isinstance(value, Mapping):
            fills = [(key, self._tree(part, where)) for key, part in value.items()]
            return lambda row: {key: fill(row) for key, fill in fills}
        if isinstance(value, list):
            parts = [self._tree(part, where) for part in value]
            return lambda row: [fill(row) for fill in parts]
        return lambda row: value

    def _messages(self, value: Any, where: str) -> Fill:
        """Messages: a template that gives all of them, or a list in which each is a template, or a template of some."""
        if isinstance(value, str):
            whole = self._compiled(value, where)
            return lambda row: _as_messages(whole.value(row))
        if not isinstance(value, list):
            raise RefusedError(f"{where}: is a list of messages, or a template that gives one")
        parts = [self._some_messages(part, where) for part in value]
        return lambda row: [message for part in parts for message in part(row)]

    def _some_messages(self, value: Any, where: str) -> Callable[[Row], list[dict[str, Any]]]:
        if isinstance(value, str):
            some = self._compiled(value, where)
            return lambda row: _as_messages(some.value(row))
        if not isinstance(value, Mapping):
            raise RefusedError(
                f"{where}: a message is a table with 'role' and 'content', or a template that gives some"
            )
        fills = [(key, self._part(part, where)) for key, part in value.items()]
        return lambda row: [{key: fill(row) for key, fill in fills}]

    def _part(self, value: Any, where: str) -> Fill:
        """A part of a message: a text is always one."""
        if isinstance(value, str) and _is_template(value):
            template = self._compiled(value, where)
            return template.text
        return self._tree(value, where)


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text or "{#" in text


def _as_messages(value: Any) -> list[dict[str, Any]]:
    if is_gap(value):
        return []
    try:
        return chat(value)
    except ValueError as error:
        raise RowError(str(error), "messages") from None
