"""The sandbox of templates: Jinja2's own, with an allowance for what values may do and budgets for what rows may cost.

Templates and rows may be anybody's. A template reads the row and writes text: it reaches no object of Python's, no
file and no chance, and what it computes is counted. Loops, calls and filters are steps; texts and nested values have
a largest size, checked before they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, cast

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from jobs.errors import RefusedError
from jobs.templates.budget import MOST_WIDTH_BITS, Budget, BudgetError, fits, measured
from jobs.templates.filters import check_format, filters, join, replace
from jobs.templates.values import text_of

MOST_SOURCE = 1 << 20
"""Characters of a template."""

_OF_TEXTS = (
    "lower upper strip lstrip rstrip split rsplit splitlines startswith endswith removeprefix removesuffix title "
    "capitalize casefold swapcase find rfind count index isdigit isalpha isalnum isnumeric isupper islower isspace "
    "partition rpartition replace join"
)
_OF_DATES = "year month day hour minute second microsecond date time isoformat weekday isoweekday"
METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_OF_TEXTS.split()),
    dict: frozenset({"keys", "values", "items", "get"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
    date: frozenset(_OF_DATES.split()),
    time: frozenset({"hour", "minute", "second", "microsecond", "isoformat"}),
    timedelta: frozenset({"days", "seconds", "microseconds", "total_seconds"}),
    Decimal: frozenset(),
}
"""What templates may use of the values of rows."""
GLOBALS = ("range", "dict", "namespace")
REMOVED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one input's templates, with ``more`` filters than usual. Used by one thread."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, more: Mapping[str, Callable[..., Any]] | None = None) -> None:
        super().__init__(
            undefined=StrictUndefined, autoescape=False, finalize=self._written, keep_trailing_newline=True
        )
        self.budget = Budget()
        self.globals = {name: self.globals[name] for name in GLOBALS}
        self.filters = filters(self.budget, more or {})
        self.filters |= {"_steps": self._steps, "_concat": self._concat, "_measured": measured}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        kind = next((kind for kind in METHODS if isinstance(obj, kind)), None)
        # Loops, macros and namespaces are Jinja's own.
        return attr in METHODS[kind] if kind is not None else super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """None: texts have no ``format`` here, for its widths know no bound."""
        return None

    def call(self, context: Context, function: Any, /, *given: Any, **named: Any) -> Any:
        self.budget.step()
        for value in (*given, *named.values()):
            measured(value)
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            name = function.__name__
            if name == "join":
                return join(given[0] if given else (), owner)
            if name == "replace":
                return replace(owner, *given, **named)
        return super().call(context, function, *given, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return super().call_binop(context, operator, left, right)
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _written(self, value: Any) -> Any:
        if type(value) is str:
            return self.budget.wrote(value)
        return value if isinstance(value, Undefined) else self.budget.wrote(text_of(value))

    def _steps(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.budget.step()
            yield value

    def _concat(self, parts: list[Any]) -> str:
        return join(parts)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """See that an operation makes nothing huge.

    Raises:
        BudgetError: it does.
    """
    if operator == "%" and isinstance(left, str):
        check_format(left)
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        fits(len(left) + len(right))
    elif operator == "+" and isinstance(left, list | tuple):
        measured([left, right])
    elif operator in ("*", "**"):
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str) and isinstance(times, int):
                fits(len(many) * max(times, 0))
            elif isinstance(many, list | tuple):
                raise BudgetError("multiplies a list")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MOST_WIDTH_BITS:
                raise BudgetError("computes a number that is too large")


class _Counting(NodeTransformer):
    """Has loops count their turns, and texts and values their size, where Jinja would not ask."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (the visitor's name)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_steps")
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            node.args = [_filtered(argument, "_steps") for argument in node.args]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = _filtered(node.node, "_measured")
        return node

    def visit_With(self, node: nodes.With) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.values = [_filtered(value, "_measured") for value in node.values]
        return node


def _filtered(value: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast("nodes.Expr", value), name, [], [], None, None, lineno=value.lineno)


class RowError(Exception):
    """A template does not fit a row: ``column`` is what it asks for, where that is known; ``missing`` says that the row
    lacks it."""

    def __init__(self, message: str, column: str | None = None, *, missing: bool = False) -> None:
        super().__init__(message)
        self.column, self.missing = column, missing

    @property
    def code(self) -> str:
        """What error records call it."""
        return "missing_field" if self.missing else "invalid_type"


class Compiled:
    """A template, compiled once: ``text(row)`` is what it writes, ``value(row)`` the value of its one expression."""

    def __init__(self, sandbox: Sandbox, source: str, where: str) -> None:
        if len(source) > MOST_SOURCE:
            raise RefusedError(f"{where}: the template has more than {MOST_SOURCE:,} characters")
        self._sandbox, self.where = sandbox, where
        try:
            tree = sandbox.parse(source)
            if (removed := next(tree.find_all(REMOVED), None)) is not None:
                name = type(removed).__name__.lower()
                raise RefusedError(f"{where}: templates stand alone: no {name} in line {removed.lineno}")
            self.names = frozenset(meta.find_undeclared_variables(tree)) - frozenset(GLOBALS)
            """What it asks of a row."""
            self.guarded = _guarded(tree)
            """Of these, what it may do without."""
            expression = _alone(tree)
            self.is_value = expression is not None
            tree = _Counting().visit(tree)
            self._render = self._made(tree)
            self._evaluate = None
            if expression is not None:
                result = nodes.Assign(nodes.Name("result", "store"), expression, lineno=1)
                self._evaluate = self._made(_Counting().visit(nodes.Template([result], lineno=1)))
        except TemplateSyntaxError as error:
            raise RefusedError(f"{where}: line {error.lineno} of the template: {error.message}") from None
        except TemplateError as error:
            raise RefusedError(f"{where}: {error}") from None
        except (RecursionError, SyntaxError, MemoryError):  # the last two are Python's about what Jinja makes of it
            raise RefusedError(f"{where}: the template is nested too deeply") from None

    def _made(self, tree: nodes.Template) -> Template:
        tree.set_environment(self._sandbox)
        code = self._sandbox.compile(tree, None, self.where)
        return Template.from_code(self._sandbox, code, self._sandbox.globals)

    def text(self, row: Mapping[str, Any]) -> str:
        """What the template writes for a row.

        Raises:
            RowError: the row lacks what it asks for, or has it of another kind.
            RefusedError: it asks for more than a row may cost.
        """
        return str(self._run(row, self._render, _text))

    def value(self, row: Mapping[str, Any]) -> Any:
        """The value of the template's one expression, or else its text.

        Raises:
            RowError, RefusedError: as :meth:`text`.
        """
        return self.text(row) if self._evaluate is None else self._run(row, self._evaluate, _result)

    def _run(self, row: Mapping[str, Any], template: Template, run: Callable[[Template, Context], Any]) -> Any:
        self._sandbox.budget.begin()
        try:
            return run(template, template.new_context(cast("dict[str, Any]", row)))
        except UndefinedError as error:
            raise self._unknown(row, error) from None
        except BudgetError as error:
            raise RefusedError(f"{self.where}: the template {error}") from None
        except SecurityError as error:
            raise RefusedError(f"{self.where}: {error}; templates read values and nothing else") from None
        except MemoryError:
            raise RefusedError(f"{self.where}: the template takes too much memory") from None
        except RecursionError:
            raise RefusedError(f"{self.where}: the template calls itself without an end") from None
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise RowError(f"{error!s:.300}" or type(error).__name__) from None

    def _unknown(self, row: Mapping[str, Any], error: UndefinedError) -> RowError:
        from jobs.params import did_you_mean

        missing = next((name for name in sorted(self.names - self.guarded) if name not in row), None)
        if missing is None:
            return RowError(f"{error!s:.300}")
        return RowError(f"is no column of this row{did_you_mean(missing, row)}{_columns(row)}", missing, missing=True)


def _columns(row: Iterable[str]) -> str:
    names = ", ".join(row)
    return f" (columns {names:.200})" if names else ""


def _text(template: Template, context: Context) -> str:
    return "".join(template.root_render_func(context))


def _result(template: Template, context: Context) -> Any:
    for _ in template.root_render_func(context):
        pass
    value = context.vars["result"]
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    return value


def _alone(tree: nodes.Template) -> nodes.Expr | None:
    """The expression that is all of a template."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], nodes.Output) or len(tree.body[0].nodes) != 1:
        return None
    only = tree.body[0].nodes[0]
    return None if isinstance(only, nodes.TemplateData) else only


def _guarded(tree: nodes.Template) -> frozenset[str]:
    """Names that a template asks for with a default, or whether they are there."""
    guards = [node.node for node in tree.find_all(nodes.Filter) if node.name in ("default", "d")]
    guards += [node.node for node in tree.find_all(nodes.Test) if node.name in ("defined", "undefined")]
    return frozenset(node.name for node in guards if isinstance(node, nodes.Name))
