"""Checks of who may do what in a Redis: our user enough, strangers nothing, and nobody on the way can listen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deploy.doctor.finding import Finding, failed, good, skipped, unsure
from jobs.redis.permissions import Refusal, refusals
from jobs.store.keys import PREFIX, RQ_SUSPENDED

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["check_encryption", "check_password", "check_permissions", "open_to_strangers", "try_permissions"]

_SUBMITTERS = (PREFIX, "rq:queue:", "rq:job:", "rq:wip:", "rq:executions:")
_WORKERS = (PREFIX, "rq:")
_READERS = (
    ("SMEMBERS", "rq:queues"),
    ("SREM", "rq:queues", ""),
    ("EXISTS", RQ_SUSPENDED),
    ("SCAN", 0, "COUNT", 1),
    ("INFO", "server"),
)
"""What `submit` and `status` do besides; nothing of it changes anything."""
SHOWN = 6


def try_permissions(connection: Redis, name: str, *, worker: bool) -> list[Refusal]:
    """What a submitter, or a worker, is refused here; it is tried on keys of this name, which are gone in the end."""
    prefixes = _WORKERS if worker else _SUBMITTERS
    channel = f"rq:pubsub:{name}:permissions" if worker else None
    keys = [f"{prefix}permissions:{name}" for prefix in prefixes]
    return refusals(connection, keys, channel, more=(*_READERS, ("MEMORY", "USAGE", keys[0])))


def check_permissions(refused: Sequence[Refusal], url: str, *, worker: bool, tool: str = "redis-cli") -> Finding:
    """The user of the URL may do what its part needs; ``tool`` is the command that reaches the server."""
    part = "worker" if worker else "submitter"
    user = urlsplit(url).username or "default"
    if not refused:
        return good("permissions", f"user '{user}' may do all that a {part} does")
    reason = f"user '{user}' may not use {_shown(refused)}, which a {part} needs"
    remedy = (
        "where `promptmill deploy server` set up the server, its --install again gives it the rules; otherwise give it "
        f"those of the {part} in deploy/redis/users.acl, then:"
    )
    return failed("permissions", reason, remedy, f"{tool} ACL LOAD")


def _shown(refused: Sequence[Refusal]) -> str:
    """What is refused: commands, or keys and channels where those are what the user may not touch."""
    shown: list[str] = []
    for refusal in refused:
        if refusal.target and "access" in str(refusal.error):
            shown.append(f"the {'channels' if refusal.is_channel else 'keys'} {_pattern(refusal.target)}")
        else:
            shown.append(refusal.command)
    different = list(dict.fromkeys(shown))
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(different[:SHOWN]) + more


def _pattern(target: str) -> str:
    """The keys, or channels, of which one was tried."""
    start, scratch, _ = target.partition("permissions:")
    if not scratch:
        start, scratch, _ = target.partition("doctor-")
    return f"{start}*" if scratch else start


def check_encryption(*, network: bool, encrypted: bool, loopback: bool) -> Finding:
    """Prompts, results and the password pass the network."""
    if not network:
        return skipped("encryption", "a socket of this machine")
    if encrypted:
        return good("encryption", "TLS")
    if loopback:
        return skipped("encryption", "an address of this machine")
    reason = "none: whoever is in this network can read the prompts, the results and the password"
    return unsure("encryption", reason, "have Redis listen with TLS, and write rediss:// (deploy/redis/README.md)")


def open_to_strangers(connection: Redis) -> bool | None:
    """Whether the server takes commands without a user and password; None where it could not be tried."""
    from redis import ConnectionPool, Redis
    from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

    pool = connection.connection_pool
    secrets = ("username", "password", "credential_provider")
    anonymous = {key: value for key, value in pool.connection_kwargs.items() if key not in secrets}
    stranger = Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **anonymous))
    try:
        return bool(stranger.ping())
    except (AuthenticationError, NoPermissionError):
        return False
    except RedisError:  # such as too many clients, or a network that went away: that proves nothing
        return None
    finally:
        stranger.connection_pool.disconnect()


def check_password(open_to_all: bool | None, *, loopback: bool) -> Finding:
    """Whoever reaches the server needs a password."""
    if open_to_all is None:
        return skipped("password", "a second connection, without one, did not come about")
    if not open_to_all:
        return good("password", "nobody gets in without one")
    if loopback:
        return skipped("password", "none, at an address of this machine")
    reason = "none: whoever is in this network may read and change everything"
    return unsure("password", reason, "`requirepass` in its configuration, or the users of deploy/redis/users.acl")
