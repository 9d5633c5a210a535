"""Opening Redis: where it is, how it is named to a person, and how its errors reach one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from jobs.errors import RedisError

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["connect", "redacted", "translated"]

COMMAND_TIMEOUT_S = 10.0
"""A server that is silent for so long is taken for gone: nothing of ours blocks in Redis."""
MINIMUM_VERSION = (6, 2)


def redacted(url: str) -> str:
    """The URL without its password, fit for messages and logs."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "(an invalid URL)"
    query = "&".join(
        "password=***" if item.startswith("password=") else item for item in parts.query.split("&") if item
    )
    netloc = parts.netloc
    if password is not None:
        user = parts.username or ""
        netloc = f"{user}:***@{netloc.rpartition('@')[2]}"
    text = urlunsplit((parts.scheme, netloc, parts.path, query, ""))
    return text if netloc else text.replace(":/", ":///", 1)


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn redis-py's errors into one :class:`RedisError` that names the address and the remedy."""
    import redis.exceptions as errors

    address = redacted(url)
    try:
        yield
    except (errors.AuthenticationError, errors.NoPermissionError) as error:
        raise RedisError(f"Redis at {address} refused the user: {error}; check the URL's user and password") from None
    except errors.OutOfMemoryError:
        raise RedisError(f"Redis at {address} is out of memory; purge old batches or raise its maxmemory") from None
    except (errors.ConnectionError, errors.TimeoutError) as error:
        raise RedisError(
            f"cannot reach Redis at {address}: {error}; start it, or give its address with --redis"
        ) from None
    except errors.ResponseError as error:
        raise RedisError(f"Redis at {address} refused a command: {error}") from None


def connect(url: str, *, timeout_s: float = COMMAND_TIMEOUT_S, retries: int = 2) -> Redis:
    """An open connection pool to ``url``, checked with a PING; replies are bytes.

    A server that is silent for ``timeout_s`` is taken for gone, after so many ``retries``. For a worker both are small:
    it rides out an outage by itself, and must hear of it soon.

    Raises:
        RedisError: unreachable, refused, or older than Redis 6.2 (RQ's safe dequeue needs its BLMOVE).
    """
    from redis import Redis
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry

    # A unix socket has neither: redis-py refuses the settings there.
    network: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True, "socket_connect_timeout": 5}
    try:
        client = Redis.from_url(
            url,
            **network,
            health_check_interval=30,
            socket_timeout=timeout_s,
            retry=Retry(ExponentialBackoff(cap=2, base=0.05), retries),
            protocol=2,
        )
    except (ValueError, TypeError) as error:
        raise RedisError(f"{redacted(url)} is not a Redis URL: {error}") from None
    with translated(url):
        version = str(client.info("server").get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
        raise RedisError(f"Redis at {redacted(url)} is version {version}; 6.2 or later is needed")
    return client
