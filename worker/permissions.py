"""What a worker needs to be allowed in Redis: tried at its start, so that nothing fails with lines in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError

from jobs.keys import PREFIX

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["check_permissions"]

_COMMANDS: tuple[tuple[Any, ...], ...] = (
    *((name,) for name in ("DEL", "UNLINK", "EXISTS", "TYPE", "GET", "STRLEN")),
    *((name,) for name in ("HGETALL", "HKEYS", "HLEN", "LLEN", "SMEMBERS", "TTL", "ZCARD", "ZPOPMIN")),
    *((name, "x") for name in ("HGET", "HMGET", "HDEL", "HEXISTS", "HSTRLEN", "SADD", "SREM", "LPUSH", "RPUSH")),
    *((name, "x") for name in ("LPUSHX", "ZREM", "ZSCORE")),
    *((name, 60) for name in ("EXPIRE", "PEXPIRE")),
    *((name, 0, 0) for name in ("GETRANGE", "LRANGE", "ZRANGE", "ZRANGEBYSCORE")),
    *((name, "x", 1) for name in ("HSET", "HSETNX", "HINCRBY", "HINCRBYFLOAT")),
    ("SET", 1, "PX", 1),
    ("ZADD", 1, "x"),
    ("LREM", 1, "x"),
)
"""Commands without their first argument, a key; each does nothing there, or something that is removed again."""


def check_permissions(connection: Redis, name: str) -> None:
    """Try what a worker of this name does, on keys of its own that are gone in the end.

    Raises:
        NoPermissionError: the first that the user is not allowed.
    """
    with connection.pipeline(transaction=False) as pipe:
        for prefix in (PREFIX, "rq:"):
            key = f"{prefix}permissions:{name}"
            for command, *arguments in _COMMANDS:
                pipe.execute_command(command, key, *arguments)
                pipe.delete(key)
            pipe.lmove(key, key, "LEFT", "RIGHT")
        pipe.publish(f"rq:pubsub:{name}:permissions", "")
        for reply in pipe.execute(raise_on_error=False):
            if isinstance(reply, NoPermissionError):
                raise reply
    connection.register_script("return 1")()
    with connection.pipeline() as transaction:
        transaction.time()
        transaction.execute()
    with connection.pubsub() as listener:
        listener.subscribe(f"rq:pubsub:{name}:permissions")
        listener.get_message(timeout=5)
