"""The settings file of a daemon: what is secret, for the service's user alone, and what people added to it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from deploy.init.service import CA_FILE, Deployment
from deploy.plan import File
from jobs.errors import RefusedError
from jobs.redis.connect import redacted

Key = tuple[str, str]
"""A table, empty for the file's top level, and a key of it."""


def settings_file(deployment: Deployment, values: Mapping[Key, str] = MappingProxyType({})) -> File:
    """The settings that hold the URL with its password, and ``values``: for the service's user alone. What else is in
    the file stays."""
    given = dict(values)
    if deployment.url is not None:
        given = {("", "redis"): _url(deployment.url, deployment.authority), **given}
    path, account = deployment.settings, deployment.account
    text = changed(path, deployment.existing or "", given) if given else ""
    shown = _shown(deployment, given)
    return File(path, text, 0o600, account.user, account.group, shown=shown, kept=not given)


def _url(url: str, authority: str | None) -> str:
    """The URL as it is written: one of a server with an authority of its own names that."""
    if authority is None or "ssl_ca_certs" in url:
        return url
    if not url.startswith("rediss://"):
        raise RefusedError(f"--ca is for a server with TLS, and {redacted(url)} is none: write rediss://")
    return f"{url}{'&' if '?' in url else '?'}ssl_ca_certs={quote(str(CA_FILE))}"


def _shown(deployment: Deployment, given: Mapping[Key, str]) -> str:
    """The settings file as people see it: nothing secret of it, of what is kept only the names."""
    safe = {key: redacted(value) if key == ("", "redis") else "***" for key, value in given.items()}
    kept = [name for name in settings_in(deployment.existing) if name not in map(_name, given)]
    if deployment.url is None and deployment.existing is None:
        kept.append("redis")
    text = changed(Path("settings"), "", safe).lstrip("\n")
    return text + (f"# kept as it is: {', '.join(kept)}\n" if kept else "")


def _name(key: Key) -> str:
    return ".".join(filter(None, key))


def changed(path: Path, text: str, values: Mapping[Key, str]) -> str:
    """The text of a settings file with these values, and all else of it as it is.

    Raises:
        RefusedError: it is no TOML, or a value stands in it in a way that a line does not show.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(f"{path} is no TOML: {error}; mend it, or remove it and give all of it again") from None
    lines = text.splitlines()
    for (table, key), value in values.items():
        lines = _set(lines, table, key, value)
        found: Any = document.setdefault(table, {}) if table else document
        if isinstance(found, dict):
            found.pop(key.replace("-", "_"), None)
            found[key] = value
    made = "\n".join(lines) + "\n"
    try:
        same = tomllib.loads(made) == document
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        names = ", ".join(map(_name, values))
        raise RefusedError(f"{path}: cannot be changed as it is written; write {names} plainly, each on a line")
    return made


def settings_in(text: str | None) -> tuple[str, ...]:
    """The names of all that a settings file sets; none where it cannot be read."""
    try:
        document = tomllib.loads(text or "")
    except tomllib.TOMLDecodeError:
        return ()
    names: list[str] = []
    for name, value in document.items():
        names += [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    return tuple(name if name.isprintable() else repr(name) for name in names)


def _set(lines: Sequence[str], table: str, key: str, value: str) -> list[str]:
    """The lines with one that sets a key, in the place of the one that did, or first in its table."""
    heads = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    start = 0
    if table:
        named = re.compile(rf"\s*\[\s*{re.escape(table)}\s*\]\s*(#.*)?")
        start = next((number + 1 for number in heads if named.fullmatch(lines[number])), len(lines) + 1)
        if start > len(lines):
            lines = [*lines, *([""] if lines else []), f"[{table}]"]
            start = len(lines)
    end = next((number for number in heads if number >= start), len(lines))
    # A JSON string of printable text is a TOML string.
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    own = re.compile(rf"\s*{'[-_]'.join(map(re.escape, key.split('-')))}\s*=")
    for number in range(start, end):
        if own.match(lines[number]):
            return [*lines[:number], line, *lines[number + 1 :]]
    return [*lines[:start], line, *lines[start:]]
