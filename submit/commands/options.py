"""Options that several commands share, made once: Redis, JSON output, and a flag per generation parameter."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from jobs.app.settings import origin, read_toml
from jobs.app.units import parse_duration, parse_size
from jobs.batch import PRIORITIES
from jobs.errors import LineError, RefusedError
from jobs.lines.line import Defaults, check_defaults
from jobs.lines.tools import CHOICES
from jobs.params import ALIASES, PARAMETERS, Parameter
from jobs.redis.connect import check_url

if TYPE_CHECKING:
    from jobs.store.store import Store
    from submit.upload.submitter import Order

F = TypeVar("F", bound=Callable[..., Any])

LONGEST_S = 10 * 365 * 86400.0


def in_this_order(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator that adds several options to a command; the help shows them in this order."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class Duration(click.ParamType[float]):
    """Seconds, of ``90s``, ``12h`` or ``14d``: of a ``lifetime`` more than none and less than ten years, which with
    ``forever`` may have no end (None)."""

    name = "duration"

    def __init__(self, *, lifetime: bool = True, forever: bool = False) -> None:
        self._lifetime, self._forever = lifetime, forever

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self._forever and value == "forever":
            return None
        otherwise = ", or `forever`" if self._forever else ""
        try:
            seconds = parse_duration(str(value))
        except RefusedError as error:
            self.fail(f"{error}{otherwise}", param, ctx)
        if self._lifetime and not 0 < seconds < LONGEST_S:
            self.fail(
                f"must be above 0 and below ten years, not {value!s:.40}; write 90s, 2h or 14d{otherwise}", param, ctx
            )
        return seconds


def _check_redis(_ctx: click.Context, _param: click.Parameter, url: str | None) -> str | None:
    try:
        check_url(url or "redis://")
    except RefusedError as error:
        raise click.BadParameter(str(error)) from None
    return url


def given_by(name: str) -> str:
    """The flag, setting or variable that gave the running command its parameter ``name``, for messages."""
    context = click.get_current_context()
    parameter = next(parameter for parameter in context.command.params if parameter.name == name)
    return origin(context, parameter, os.environ) or f"--{name.replace('_', '-')}"


_any_redis: Mapping[str, Any] = {
    "metavar": "URL",
    "envvar": ["PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"],
    "help": "Redis of the pool (redis://, rediss://, unix://).  [default: this user's embedded server]",
}
redis_option = click.option("--redis", "redis_url", callback=_check_redis, **_any_redis)
any_redis_option = click.option("--redis", "redis_url", **_any_redis)
"""For `promptmill doctor`, which examines what it is given."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
keep_cut_option = click.option(
    "--keep-cut",
    is_flag=True,
    help="With --format chat and completions: write texts that max_tokens or the context cut, too.",
)


class Size(click.ParamType[int]):
    """Bytes, of ``512M``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except RefusedError as error:
            self.fail(str(error), param, ctx)


table_out_options = in_this_order(
    click.option(
        "--shard-size",
        type=Size(),
        metavar="SIZE",
        help="With Parquet: files of about this size, such as 512M, called OUT-00000-of-00002.",
    ),
    click.option(
        "--json-columns",
        is_flag=True,
        help="In a table: a column for each key of texts that are JSON objects, after those of the result.",
    ),
    click.option(
        "--card",
        is_flag=True,
        help="Write a README.md beside a table, as data sets on the Hub have one: columns, counts, model, parameters, "
        "template.",
    ),
)
"""How tables of results are written, for :func:`table_out`."""


def table_out(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the flags of ``table_out_options`` out of a command's, as a Destination has them."""
    names = {"shard_size": "shard_bytes", "card": "card", "json_columns": "json_columns"}
    return {field: flags.pop(name) for name, field in names.items()}


@contextlib.contextmanager
def open_store(
    redis_url: str | None, *, patient: bool = False, say: Callable[[str], object] | None = None, **settings: Any
) -> Iterator[Store]:
    """The storage layer on ``redis_url``, or on the embedded server for as long as the block runs.

    A server that is loading its data is waited for where it is the embedded one, or the command is ``patient``, because
    it is there to wait anyway; that is said on stderr, or by ``say``. ``settings`` are those of :func:`connect`.

    Raises:
        LoadingError: it is still loading its data.
        RedisError: unreachable or refused; also for redis-py's own errors inside the block.
    """
    from jobs.embedded.server import data_folder, embedded_server
    from jobs.redis.connect import connect, connect_patiently, translated
    from jobs.store.store import Store

    with contextlib.ExitStack() as stack:
        url = redis_url or stack.enter_context(embedded_server(data_folder(os.environ), say=say or _say))
        stack.enter_context(translated(url))
        connection = connect_patiently(url, say or _say, **settings) if patient else connect(url, **settings)
        stack.callback(connection.close)
        yield Store(connection)


class _Integer(click.ParamType[int]):
    """An integer, which may be written as a whole float."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            if not isinstance(value, str):
                return value if isinstance(value, int) else _whole(value)
            return int(value) if value.strip().lstrip("+-").isdecimal() else _whole(float(value))
        except ValueError:
            self.fail(f"'{value!s:.40}' is not a valid integer.", param, ctx)


def _whole(number: float) -> int:
    if not number.is_integer():
        raise ValueError("it has a fraction")
    return int(number)


def _say(text: str) -> None:
    click.echo(text, err=True)


_TYPES: Mapping[str, Any] = {"int": _Integer(), "float": float, "strings": str, "bias": str}
_JOB_FLAGS = (
    ("system_prompt", "System message of lines that have none."),
    ("prefill_response", "Text the assistant's turn starts with."),
    ("adapter_path", "Adapter on the model, as a worker of the pool knows it."),
)
_JOB_FIELDS = (*dict(_JOB_FLAGS), "continue_final_message")
_GUIDED_JSON = (
    ("response_format", "Shape of the texts, as OpenAI has it; a line's own says otherwise."),
    ("guided_json", "JSON schema that texts are values of."),
    ("tools", "Functions that the model may call, as OpenAI has them."),
)
_GUIDED_TEXTS = (
    ("guided_regex", "Regular expression that texts match as a whole."),
    ("guided_grammar", "Lark grammar that texts derive from."),
)
_GUIDED_FIELDS = (
    *dict(_GUIDED_TEXTS), "guided_choice", "thinking_budget", "return_token_ids", "parallel_tool_calls",
)  # fmt: skip
_CONTINUE_HELP = "Have the last message of lines that end with an assistant's message continued, as in vLLM."


def _parameter_option(row: Parameter) -> Callable[[F], F]:
    flag = f"--{row.name.replace('_', '-')}"
    how = " A newline is $'\\n' in bash and zsh; a backslash is a backslash." if row.name == "stop" else ""
    text = f"{row.meaning[0].upper()}{row.meaning[1:]}.{how}  [{row.range_text}; default {row.shown_default}]"
    if row.kind == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", row.name, default=None, help=text)
    names = [flag, *(f"--{alias.replace('_', '-')}" for alias, name in ALIASES.items() if name == row.name)]
    many = row.kind == "strings"
    metavar = "JSON" if row.kind == "bias" else None
    return click.option(*names, row.name, type=_TYPES[row.kind], multiple=many, metavar=metavar, help=text)


parameter_options = in_this_order(
    click.option(
        "--model",
        envvar="PROMPTMILL_MODEL",
        help="Model of lines that name none: a folder or a Hugging Face repository.",
    ),
    click.option("--override-model", is_flag=True, help="Use the batch's model for lines that name their own too."),
    click.option(
        "--defaults",
        "defaults_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="TOML file with values for lines that do not say them; flags win over it.",
    ),
    *(click.option(f"--{name.replace('_', '-')}", name, help=text) for name, text in _JOB_FLAGS),
    *(click.option(f"--{name.replace('_', '-')}", name, metavar="JSON", help=text) for name, text in _GUIDED_JSON),
    *(click.option(f"--{name.replace('_', '-')}", name, help=text) for name, text in _GUIDED_TEXTS),
    click.option(
        "--guided-choice", multiple=True, help="A text that is right; give it once for each, or all as a JSON array."
    ),
    click.option("--tool-choice", help="none, auto, required, or the name of the function to call."),
    click.option("--parallel-tool-calls/--no-parallel-tool-calls", default=None, help="Allow several calls at once."),
    click.option("--thinking-budget", type=_Integer(), help="Most tokens of thinking; then the answer begins."),
    click.option("--return-token-ids", is_flag=True, default=None, help="Put the ids of all tokens into records."),
    click.option("--continue-final-message", is_flag=True, default=None, help=_CONTINUE_HELP),
    click.option(
        "--expect",
        metavar="WHAT",
        help="What texts are to be: json, a file with a JSON schema (FILE.json), regex:EXPR (of the whole text), or "
        "jinja:EXPR over completion, json, reasoning, stop_reason and the row's columns. Records say judged.",
    ),
    click.option(
        "--re-ask",
        type=click.IntRange(0, 100),
        metavar="N",
        help="Ask a line whose text is not as expected again, with another seed, N times at the most.",
    ),
    click.option("--chat-template-config", metavar="JSON", help="Arguments for the chat template, as a JSON object."),
    *(_parameter_option(row) for row in PARAMETERS.values()),
)
"""``--model``, ``--defaults``, and a flag for each parameter of the contract, for :func:`defaults_from`."""


on_bad_line_option = click.option(
    "--on-bad-line",
    type=click.Choice(("reject", "skip")),
    default="reject",
    show_default=True,
    help="reject: one bad line and nothing is enqueued; skip: bad lines become error records, the rest runs.",
)
order_options = in_this_order(
    click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True),
    click.option(
        "--expires-in",
        type=Duration(),
        metavar="DURATION",
        help="End the batch so long after it begins (90s, 15m, 2h, 1d); lines not finished by then get an error "
        "record.",
    ),
    click.option(
        "--keep",
        type=Duration(forever=True),
        metavar="DURATION",
        default="14d",
        show_default=True,
        help="Remove the batch and its records so long after its end; `forever` keeps it until `promptmill purge`.",
    ),
    on_bad_line_option,
    click.option(
        "--webhook",
        metavar="URL",
        help="Where to POST word of the batch's end, signed; sent by `promptmill scheduler`, which holds the secret.",
    ),
    click.option("--metadata", metavar="JSON", help="Your own data on the batch, a JSON object; `status` shows it."),
)
"""What commands that make batches ask of a batch as a whole, for :func:`order_from`."""


def _choices(given: Sequence[str]) -> list[Any]:
    """The choices of ``--guided-choice``: one for each time it was given, or all of them in one JSON array."""
    if len(given) == 1 and given[0].lstrip().startswith("["):
        choices: list[Any] = _json_flag("guided_choice", given[0])
        return choices
    return list(given)


def defaults_from(flags: Mapping[str, Any]) -> Defaults:
    """The batch's defaults: flags over the ``--defaults`` file.

    ``flags`` are a command's parameters; those that are none of ours are left alone.

    Raises:
        RefusedError: a value breaks the contract; the message names the flag or the file's field.
    """
    given: dict[str, Any] = {}
    path: Path | None = flags.get("defaults_file")
    if path is not None:
        with _naming(lambda field: f"{path}: '{field}'"):
            given = check_defaults(read_toml(path))
    names = (*PARAMETERS, "model", *_JOB_FIELDS, *_GUIDED_FIELDS)
    asked = {name: value for name in names if (value := flags.get(name)) not in (None, ())}
    if "guided_choice" in asked:
        asked["guided_choice"] = _choices(asked["guided_choice"])
    if choice := flags.get("tool_choice"):
        asked["tool_choice"] = choice if choice in CHOICES else {"type": "function", "function": {"name": choice}}
    for name in ("logit_bias", "chat_template_config", *dict(_GUIDED_JSON)):
        if flags.get(name):
            asked["chat_template_kwargs" if name == "chat_template_config" else name] = _json_flag(name, flags[name])
    if flags.get("expect"):
        asked["expect"] = _expectation(flags["expect"])
    if flags.get("re_ask"):
        asked["re_ask"] = flags["re_ask"]
    if flags.get("override_model"):
        asked["override_model"] = True
    with _naming(_flag_of):
        defaults = Defaults({**given, **check_defaults(asked)})
    return defaults


def _flag_of(field: str) -> str:
    """The flag that gave a field, and where in it: ``--guided-json``, ``--tools[0].function.name``."""
    name = re.split(r"[.\[]", field, maxsplit=1)[0]
    flag = given_by("chat_template_config" if name == "chat_template_kwargs" else name)
    return flag + field[len(name) :]


def order_from(flags: Mapping[str, Any], *, name: str | None) -> Order:
    """What a batch of this name is to be, by the flags that commands which make batches have.

    Raises:
        RefusedError: a value is none; the message names the flag.
    """
    from submit.upload.submitter import Order

    return Order(
        defaults=defaults_from(flags),
        name=name,
        priority=flags["priority"],
        on_bad_line=flags["on_bad_line"],
        metadata=_object("metadata", flags["metadata"]),
        expires_in=flags["expires_in"],
        keep_s=flags["keep"],
        webhook=flags["webhook"],
        dedupe=flags.get("dedupe", False),
    )


def _object(name: str, text: str | None) -> dict[str, Any]:
    value = {} if text is None else _json_flag(name, text, "a JSON object")
    if not isinstance(value, dict):
        raise RefusedError(f'{given_by(name)} must be a JSON object, such as \'{{"project": "a"}}\'')
    return value


@contextlib.contextmanager
def _naming(named: Callable[[str], str]) -> Iterator[None]:
    """Refuse a value with the name of the flag or the file's field that gave it."""
    try:
        yield
    except LineError as error:
        raise RefusedError(f"{named(error.field or '')} {error.message}") from None


def _expectation(text: str) -> Any:
    """What ``--expect`` says: a schema from its file, anything else as it stands."""
    if not text.endswith(".json") or text.startswith(("regex:", "jinja:")):
        return text
    try:
        schema = orjson.loads(Path(text).read_bytes())
    except OSError as error:
        raise RefusedError(f"--expect: {text}: cannot be read: {error.strerror or error}") from None
    except orjson.JSONDecodeError as error:
        raise RefusedError(f"--expect: {text}: is not valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise RefusedError(f"--expect: {text}: a JSON schema is an object")
    return schema


def _json_flag(name: str, text: str, what: str = "JSON") -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RefusedError(f"{given_by(name)} must be {what}: {error}") from None
