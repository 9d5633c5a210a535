"""What a user is allowed in Redis, found by trying: not every user may read the access rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis
    from redis.exceptions import NoPermissionError

_COMMANDS: tuple[tuple[Any, ...], ...] = (
    *((name,) for name in ("UNLINK", "EXISTS", "TYPE", "GET", "STRLEN")),
    *((name,) for name in ("HGETALL", "HKEYS", "HLEN", "LLEN", "SMEMBERS", "TTL", "ZCARD", "ZPOPMIN")),
    *((name, "x") for name in ("HGET", "HMGET", "HDEL", "HEXISTS", "HSTRLEN", "SADD", "SREM", "LPUSH", "RPUSH")),
    *((name, "x") for name in ("LPUSHX", "SMISMEMBER", "ZREM", "ZSCORE")),
    *((name, 60) for name in ("EXPIRE", "PEXPIRE")),
    *((name, 0, 0) for name in ("GETRANGE", "LRANGE", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE")),
    *((name, "x", 1) for name in ("HSET", "HSETNX", "HINCRBY", "HINCRBYFLOAT")),
    ("SET", 1, "PX", 1),
    ("ZADD", 1, "x"),
    ("LREM", 1, "x"),
)
"""Commands without their first argument, a key; each does nothing there, or something that is removed again."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command that is refused, the key or channel it was for (empty where it has none), and what the server said."""

    command: str
    target: str
    error: NoPermissionError

    @property
    def is_channel(self) -> bool:
        return self.command in ("PUBLISH", "SUBSCRIBE")


def refusals(
    connection: Redis, keys: Sequence[str], channel: str | None = None, more: Sequence[tuple[Any, ...]] = ()
) -> list[Refusal]:
    """Try what submitters do, and with a channel what workers do besides, on these keys, which are gone in the end.

    The keys are to be the caller's own: nobody else may use them. ``more`` are commands that change nothing.
    """
    found: list[Refusal] = []
    allowed = [key for key in keys if _try(connection, [("DEL", key)], found)]
    for key in allowed:  # only where what is put can be removed again
        steps = [(command, key, *arguments) for command, *arguments in _COMMANDS]
        steps += [("LMOVE", key, key, "LEFT", "RIGHT"), ("RENAME", key, key)]
        _try(connection, steps, found, after=("DEL", key))
    _try(connection, more, found)
    _try_scripts(connection, found)
    if channel is not None:
        _try(connection, [("PUBLISH", channel, "")], found)
        _try_listening(connection, channel, found)
    return found


def _try(
    connection: Redis, steps: Sequence[tuple[Any, ...]], found: list[Refusal], after: tuple[Any, ...] | None = None
) -> bool:
    """Do all steps, each followed by ``after``; note which are refused. Whether none was."""
    from redis.exceptions import NoPermissionError

    with connection.pipeline(transaction=False) as pipe:
        for step in steps:
            pipe.execute_command(*step)  # type: ignore[no-untyped-call]
            if after is not None:
                pipe.execute_command(*after)  # type: ignore[no-untyped-call]
        replies = pipe.execute(raise_on_error=False)[:: 1 if after is None else 2]
    refused = [
        Refusal(str(step[0]), str(step[1]) if ":" in str(step[1]) else "", reply)
        for step, reply in zip(steps, replies, strict=True)
        if isinstance(reply, NoPermissionError)
    ]
    found += refused
    return not refused


def _try_scripts(connection: Redis, found: list[Refusal]) -> None:
    from redis.exceptions import NoPermissionError

    try:
        connection.register_script("return 1")()
    except NoPermissionError as error:
        found.append(Refusal(_named(error, "EVALSHA"), "", error))
    try:
        with connection.pipeline() as transaction:
            transaction.time()
            transaction.execute()
    except NoPermissionError as error:
        found.append(Refusal(_named(error, "MULTI"), "", error))


def _named(error: Exception, otherwise: str) -> str:
    """The command that an error is about, where several were tried at once."""
    found = re.search(r"run the '([^']+)' command", str(error))
    return found[1].upper().replace("|", " ") if found else otherwise


def _try_listening(connection: Redis, channel: str, found: list[Refusal]) -> None:
    from redis.exceptions import NoPermissionError

    try:
        with connection.pubsub() as listener:  # type: ignore[no-untyped-call]
            listener.subscribe(channel)
            listener.get_message(timeout=5)
    except NoPermissionError as error:
        found.append(Refusal("SUBSCRIBE", channel, error))
