"""Checks of who may do what in a Redis: our user enough, strangers nothing, and nobody on the way can listen, as long
as the server's certificate is good."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from redis import ConnectionPool, Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from deploy.doctor.finding import Finding, failed, good, skipped, some, unsure
from jobs.redis.permissions import Refusal, refusals
from jobs.store.keys import PREFIX, RQ_SUSPENDED
from submit.status.text import plural

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
SOON_S = 60 * 86400.0
RENEW = "`promptmill deploy server ... --install` again, on the server's machine with the flags of before, renews it"
_EXPIRED, _NOT_YET = 10, 9
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID."""


def try_permissions(connection: Redis, name: str, *, worker: bool) -> list[Refusal]:
    """What a submitter, or a worker, is refused here; it is tried on keys of this name, which are gone in the end."""
    prefixes = _WORKERS if worker else _SUBMITTERS
    channel = f"rq:pubsub:{name}:permissions" if worker else None
    keys = [f"{prefix}permissions:{name}" for prefix in prefixes]
    return refusals(connection, keys, channel, more=(*_READERS, ("MEMORY", "USAGE", keys[0])))


def judge_permissions(refused: Sequence[Refusal], url: str, *, worker: bool, tool: str = "redis-cli") -> Finding:
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
    return some(list(dict.fromkeys(shown)), SHOWN)


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


def check_certificate(settings: Mapping[str, Any], timeout_s: float) -> Finding:
    """It is good for two months at least, as a handshake by the settings of redis-py's URL tells. Nothing else warns of
    its end, and then the whole pool stands still. All other trouble is left to whoever connects after this."""
    name, ends = "certificate", None
    try:
        ends = _end_of_certificate(settings, timeout_s)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _NOT_YET:
            remedy = "set the clock of this machine, or of the one that made it"
            return failed(name, "the server's is not valid yet", remedy)
        if error.verify_code == _EXPIRED:
            reason = "the server's, or its authority's, is over: nobody gets in"
            return failed(name, reason, f"{RENEW}; or mend this clock")
    except (OSError, ValueError):
        pass
    if ends is None:
        return skipped(name, "when the server's ends is not known")
    left_s, day = ends - time.time(), datetime.fromtimestamp(ends, UTC).date().isoformat()
    if left_s < SOON_S:
        days = plural(int(left_s // 86400), "day")
        return unsure(name, f"the server's ends on {day}, in {days}: then nobody gets in", RENEW)
    return good(name, f"the server's is good until {day}")


def _end_of_certificate(settings: Mapping[str, Any], timeout_s: float) -> float | None:
    """When the server's certificate ends, in seconds since the epoch; None where nobody verifies it."""
    if settings.get("ssl_cert_reqs") in ("none", "CERT_NONE"):
        return None
    host, port = str(settings.get("host") or "localhost"), int(settings.get("port") or 6379)
    context = ssl.create_default_context()
    context.check_hostname = False  # that is said by whoever connects
    files = {name: settings.get(f"ssl_ca_{name}") for name in ("certs", "path", "data")}
    if any(files.values()):
        context.load_verify_locations(files["certs"], files["path"], files["data"])
    if settings.get("ssl_certfile"):
        password = settings.get("ssl_password") or ""
        context.load_cert_chain(settings["ssl_certfile"], settings.get("ssl_keyfile"), password)
    with (
        socket.create_connection((host, port), timeout=timeout_s) as raw,
        context.wrap_socket(raw, server_hostname=host) as wrapped,
    ):
        ends = (wrapped.getpeercert() or {}).get("notAfter")
    return ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None
