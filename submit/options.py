"""Options that several commands share, made once: Redis, JSON output, and a flag per generation parameter."""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from jobs.duration import parse_duration
from jobs.errors import LineError, RefusedError
from jobs.line import Defaults
from jobs.logs import FILE_HELP, FORMAT_HELP, FORMATS
from jobs.params import ALIASES, PARAMETERS, Parameter

if TYPE_CHECKING:
    from jobs.store import Store
    from submit.submitter import Order

__all__ = [
    "defaults_from",
    "json_option",
    "log_options",
    "open_store",
    "order_from",
    "parameter_options",
    "redis_option",
    "watch_option",
    "webhook_options",
]

F = TypeVar("F", bound=Callable[..., Any])

redis_option = click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    envvar=["PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"],
    help="Redis of the pool (redis://, rediss://, unix://).  [default: this user's embedded server]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
watch_option = click.option("--watch", is_flag=True, help="Refresh every second; q or Ctrl-C leaves.")


@contextlib.contextmanager
def open_store(redis_url: str | None) -> Iterator[Store]:
    """The storage layer on ``redis_url``, or on the embedded server for as long as the block runs.

    Raises:
        RedisError: unreachable or refused; also for redis-py's own errors inside the block.
    """
    from jobs.connect import connect, translated
    from jobs.embedded import data_folder, embedded_server
    from jobs.store import Store

    with contextlib.ExitStack() as stack:
        url = redis_url or stack.enter_context(embedded_server(data_folder(os.environ)))
        stack.enter_context(translated(url))
        connection = connect(url)
        stack.callback(connection.close)
        yield Store(connection)


_TYPES: Mapping[str, Any] = {"int": int, "float": float, "strings": str, "bias": str}
_JOB_FLAGS = (
    ("system_prompt", "System message put in front of each line's messages."),
    ("prefill_response", "Text the assistant's turn starts with."),
    ("adapter_path", "Adapter on the model, as a worker of the pool knows it."),
)


def parameter_options(command: F) -> F:
    """Add ``--model``, ``--defaults``, and a flag for each parameter of the contract."""
    for row in reversed(list(PARAMETERS.values())):
        command = _parameter_option(row)(command)
    command = click.option(
        "--chat-template-config", metavar="JSON", help="Arguments for the chat template, as a JSON object."
    )(command)
    for name, text in reversed(_JOB_FLAGS):
        command = click.option(f"--{name.replace('_', '-')}", name, help=text)(command)
    command = click.option(
        "--defaults",
        "defaults_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="TOML file with values for lines that do not say them; flags win over it.",
    )(command)
    return click.option(
        "--model",
        envvar="PROMPTMILL_MODEL",
        help="Model of lines that name none: a folder or a Hugging Face repository.",
    )(command)


def _parameter_option(row: Parameter) -> Callable[[F], F]:
    flag = f"--{row.name.replace('_', '-')}"
    text = f"{row.meaning[0].upper()}{row.meaning[1:]}.  [{row.range_text}; default {row.shown_default}]"
    if row.kind == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", row.name, default=None, help=text)
    names = [flag, *(f"--{alias.replace('_', '-')}" for alias, name in ALIASES.items() if name == row.name)]
    many = row.kind == "strings"
    metavar = "JSON" if row.kind == "bias" else None
    return click.option(*names, row.name, type=_TYPES[row.kind], multiple=many, metavar=metavar, help=text)


def defaults_from(flags: Mapping[str, Any]) -> Defaults:
    """The batch's defaults: flags over the ``--defaults`` file.

    ``flags`` are a command's parameters; those that are none of ours are left alone.

    Raises:
        RefusedError: a value breaks the contract; the message names the flag or the file's field.
    """
    given: dict[str, Any] = {}
    path: Path | None = flags.get("defaults_file")
    if path is not None:
        given = _checked(_read_toml(path), str(path))
    asked = {name: value for name in (*PARAMETERS, "model", *dict(_JOB_FLAGS)) if _said(value := flags.get(name))}
    for name, field in (("logit_bias", "logit_bias"), ("chat_template_config", "chat_template_kwargs")):
        if flags.get(name):
            asked[field] = _json_flag(name, flags[name])
    return Defaults({**given, **_checked(asked, "flags")})


def order_from(flags: Mapping[str, Any], *, name: str | None) -> Order:
    """What a batch of this name is to be, by the flags that commands which make batches have.

    Raises:
        RefusedError: a value is none; the message names the flag.
    """
    from submit.submitter import Order

    expires_in, keep = flags["expires_in"], flags["keep"]
    return Order(
        defaults=defaults_from(flags),
        name=name,
        priority=flags["priority"],
        on_bad_line=flags["on_bad_line"],
        metadata=_object("--metadata", flags["metadata"]),
        expires_in=None if expires_in is None else parse_duration(expires_in),
        keep_s=None if keep == "forever" else parse_duration(keep),
        webhook=flags["webhook"],
    )


def _object(flag: str, text: str | None) -> dict[str, Any]:
    try:
        value = {} if text is None else orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RefusedError(f"{flag} must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError(f'{flag} must be a JSON object, such as \'{{"project": "a"}}\'')
    return value


def _said(value: Any) -> bool:
    return value is not None and value != ()


def _checked(fields: dict[str, Any], source: str) -> dict[str, Any]:
    try:
        return dict(Defaults(fields).fields)
    except LineError as error:
        name = f"--{(error.field or '').replace('_', '-')}" if source == "flags" else f"{source}: '{error.field}'"
        raise RefusedError(f"{name} {error.message}") from None


def _json_flag(name: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RefusedError(f"--{name.replace('_', '-')} must be JSON: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RefusedError(f"{path}: cannot be read as TOML: {error}") from None


def log_options(command: F) -> F:
    """Add ``--log-format`` and ``--log-file``, for :func:`jobs.logs.set_up_logging`."""
    command = click.option(
        "--log-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=FILE_HELP
    )(command)
    return click.option(
        "--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help=FORMAT_HELP
    )(command)


def webhook_options(command: F) -> F:
    """Add ``--webhook-secret`` and ``--webhook-hosts``, for :class:`submit.courier.Courier`."""
    command = click.option(
        "--webhook-hosts",
        multiple=True,
        metavar="PATTERN",
        help="Hosts that webhooks may go to, such as *.example.com; may be given several times.  "
        "[default: any but this machine's own and link-local addresses]",
    )(command)
    return click.option(
        "--webhook-secret",
        envvar="PROMPTMILL_WEBHOOK_SECRET",
        metavar="SECRET",
        help="What webhooks are signed with: whsec_ and base64, or several separated by spaces. Give it in "
        "PROMPTMILL_WEBHOOK_SECRET or the settings file: flags can be seen by every user of the machine.",
    )(command)
