"""`promptmill key`: the keys that `promptmill serve` lets in."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import orjson

from jobs.batch import timestamp
from jobs.errors import RefusedError
from serve.access.keyfile import LONGEST, NAME, SHORTEST, Key, changed_keys, digest, new_token, read_keys
from submit.commands.options import Duration, json_option

keys_option = click.option(
    "--keys", "path", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
    help="The file of keys that is given to `promptmill serve`.",
)  # fmt: skip


@click.group("key", short_help="The keys that `promptmill serve` lets in: add, list, revoke.")
def command() -> None:
    """The keys that `promptmill serve` lets in.

    The file holds their hashes only. A running server reads it again when it has changed.
    """


@command.command("add")
@click.argument("name")
@keys_option
@click.option("--models", multiple=True, metavar="MODEL", help="Only for this model; may be given several times.")
@click.option("--expires", type=Duration(), metavar="DURATION", help="The key ends after so long, such as 90d.")
@click.option("--admin", is_flag=True, help="It sees what all keys and the command line have made, not only its own.")
@click.option("--from-stdin", is_flag=True, help="Take the key from standard input in place of making one.")
def add(name: str, path: Path, models: tuple[str, ...], expires: float | None, admin: bool, from_stdin: bool) -> int:
    """Make a key and print it, this once."""
    if not NAME.fullmatch(name):
        raise RefusedError(f"a key's name has letters, digits, '.', '-' and '_', at most 64, not '{name:.40}'")
    token = sys.stdin.readline().strip() if from_stdin else new_token()
    if not (SHORTEST <= len(token) <= LONGEST and token.isascii() and token.isprintable() and " " not in token):
        raise RefusedError(f"a key has {SHORTEST} to {LONGEST} printable characters and no space")
    if odd := [model for model in models if not model.strip() or "," in model]:
        raise RefusedError(f"--models '{odd[0]:.80}' is no model: give --models once for each")
    now = time.time()
    with changed_keys(path) as keys:
        if any(key.name == name for key in keys):
            raise RefusedError(f"there is a key '{name}' already: revoke it first, or take another name")
        if (same := next((key for key in keys if key.sha256 == digest(token)), None)) is not None:
            raise RefusedError(f"this is the key of '{same.name}' already: revoke that first, or take another key")
        expires_at = None if expires is None else now + expires
        keys.append(Key(name, digest(token), now, expires_at, models, admin))
    if not from_stdin:
        click.echo(token)
    return 0


@command.command("list")
@keys_option
@json_option
def show(path: Path, as_json: bool) -> int:
    """List the keys, without what clients send."""
    now = time.time()
    keys = read_keys(path)
    if as_json:
        click.echo(orjson.dumps([_as_dict(key) for key in keys], option=orjson.OPT_INDENT_2))
        return 0
    for key in keys:
        about = ["admin"] if key.admin else []
        about += [f"models: {', '.join(key.models)}"] if key.models else []
        if key.expires_at is not None:
            about.append(f"{'expires' if key.valid(now) else 'expired'} {timestamp(key.expires_at)}")
        click.echo("  ".join([key.name, *about]))
    return 0


def _as_dict(key: Key) -> dict[str, object]:
    return {
        "name": key.name,
        "created_at": timestamp(key.created_at),
        "expires_at": None if key.expires_at is None else timestamp(key.expires_at),
        "models": list(key.models),
        "admin": key.admin,
    }


@command.command("revoke")
@click.argument("name")
@keys_option
def revoke(name: str, path: Path) -> int:
    """Remove a key; what it made stays, for admin keys to see."""
    with changed_keys(path) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise RefusedError(f"there is no key '{name}' in {path}")
        keys[:] = left
    return 0
