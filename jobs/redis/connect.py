"""Opening Redis: where it is, how it is named to a person, and how its errors reach one."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from jobs.errors import LoadingError, RedisError, RefusedError

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline

COMMAND_TIMEOUT_S = 10.0
"""A server that is silent for so long is taken for gone: nothing of ours blocks in Redis."""
MINIMUM_VERSION = (6, 2)
LOADING_POLL_S = 1.0
_FOREIGN_DATA = re.compile("WRONGTYPE|FOREIGN|not an integer|not a (valid )?float|would overflow|attempt to ")
"""What Redis says, and Lua in it, where a value is of another type or size than a command needs."""

_SCHEMES = ("redis://", "rediss://", "unix://")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}")

_PLAIN_SETTING = re.compile("db|username|ssl_(ca_certs|ca_path|cert_reqs|certfile|check_hostname|keyfile)|.*timeout")
"""Settings in a URL whose values may be shown."""
_IN_SCRIPT = re.compile("ACL failure|executing the script can't")
"""What it says where a script does something that its user may not do."""


def redacted(url: str) -> str:
    """The URL without what may be secret, fit for messages and logs."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (raises where it is no number)
    except ValueError:
        return "(an invalid URL)"
    rest = f"{parts.path}?{parts.query}#{parts.fragment}"
    if "@" in rest and (parts.netloc or parts.scheme != "unix"):
        return "(an invalid URL)"  # most likely a password with a / or # in it, which is to be %-encoded
    login, at, host = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    # A name without a password may well be a token.
    shown = f"{user}:***" if colon else "***" if at else ""
    query = "&".join(_redacted_setting(item) for item in parts.query.split("&") if item)
    text = urlunsplit((parts.scheme, f"{shown}{at}{host}", parts.path, query, ""))
    return text if parts.netloc else text.replace(":/", ":///", 1)


def _redacted_setting(item: str) -> str:
    name, _, value = item.partition("=")
    return f"{name}=***" if value and not _PLAIN_SETTING.fullmatch(unquote(name)) else item


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn redis-py's errors into one :class:`RedisError` that names the address and the remedy."""
    import redis.exceptions as errors

    address = redacted(url)
    try:
        yield
    except errors.AuthenticationError as error:
        raise RedisError(
            f"Redis at {address} refused the user: {str(error).rstrip('.')}; check the URL's user and password"
        ) from None
    except errors.NoPermissionError as error:
        raise RedisError(_not_allowed(url, error)) from None
    except errors.BusyLoadingError:  # which is a ConnectionError too
        raise _loading(url, {}) from None
    except (errors.ReadOnlyError, errors.MasterDownError):
        raise RedisError(f"Redis at {address} is a replica: it takes no writes; give its primary's address") from None
    except (errors.ConnectionError, errors.TimeoutError) as error:
        raise RedisError(
            f"cannot reach Redis at {address}: {str(error).rstrip('.')}; {_remedy(url, str(error))}"
        ) from None
    except errors.InvalidResponse:
        raise RedisError(f"what answers at {address} is not Redis; give its address with --redis") from None
    except errors.ResponseError as error:
        if full(error):
            raise RedisError(f"Redis at {address} is full: give it more memory, or raise its maxmemory") from None
        if _IN_SCRIPT.search(str(error)):
            raise RedisError(_not_allowed(url, error)) from None
        raise RedisError(f"Redis at {address} refused a command: {error}") from None


def _loading(url: str, info: Mapping[str, Any]) -> LoadingError:
    """That a server loads its data, with how far it is by its INFO."""
    share, seconds = info.get("loading_loaded_perc"), info.get("loading_eta_seconds")
    said = [f"{share:.0f} %"] if isinstance(share, int | float) else []
    said += [f"about {seconds:.0f} s more"] if isinstance(seconds, int | float) and seconds > 0 else []
    progress = f" ({', '.join(said)})" if said else ""
    return LoadingError(f"Redis at {redacted(url)} is still loading its data{progress}")


def _remedy(url: str, said: str) -> str:
    """What to do where no connection came about, by what was said of it."""
    if said.startswith("Timeout reading"):
        return "it is there but does not answer: see whether it is stuck, or busy with something large"
    if not url.startswith("rediss:"):
        closed = url.startswith("redis:") and ("closed by server" in said or "reset by peer" in said)
        otherwise = "if it wants TLS, write rediss://" if closed else "give its address with --redis"
        return f"start it, or {otherwise}"
    if re.search("mismatch|not valid for", said):
        return "name the host as its certificate does"
    if "certificate has expired" in said:
        return "renew the server's certificate: `promptmill deploy server ... --install` does"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "add ?ssl_ca_certs=FILE with the certificate of its authority to the URL"
    if re.search("WRONG_VERSION_NUMBER|RECORD_LAYER", said):
        return "it does not speak TLS there: write redis://, or give its TLS port"
    if re.search("No such file|Permission denied|PEM", said):
        return "see that the files of ssl_ca_certs, ssl_certfile and ssl_keyfile in the URL are there and in order"
    if re.search("(?i)alert|closed by server|reset by peer|EOF", said):
        return "if it wants a certificate of its clients, add ssl_certfile=FILE&ssl_keyfile=FILE to the URL"
    return "start it, give its address with --redis, or write redis:// if it does not speak TLS"


def _not_allowed(url: str, error: Exception) -> str:
    user = urlsplit(url).username or "default"
    return (
        f"Redis at {redacted(url)} does not allow user '{user}' what is needed: {str(error).rstrip('.')}; "
        "give it the rules of deploy/redis/users.acl"
    )


def full(error: Exception) -> bool:
    """Whether a command was refused for want of memory; from within a script Redis 6.2 says so in words only."""
    return "command not allowed when used memory" in str(error)


def foreign_data(error: Exception) -> bool:
    """Whether a command failed because somebody put something else where our data should be: that is to be refused.
    All other errors are an outage, or for the server's operator."""
    return _FOREIGN_DATA.search(str(error)) is not None


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn the errors of commands that met data of another kind into a :class:`RefusedError`."""
    import redis.exceptions as errors

    try:
        yield
    except errors.ResponseError as error:
        if not foreign_data(error):
            raise
        raise RefusedError(f"what Redis keeps of {what} is damaged: {error}") from None


def replies(pipe: Pipeline) -> list[Any]:
    """A pipeline's replies; where a command met data of another kind its error is among them."""
    found = pipe.execute(raise_on_error=False)
    for reply in found:
        if isinstance(reply, Exception) and not foreign_data(reply):
            raise reply
    return found


def check_url(url: str) -> None:
    """See that a URL is one of Redis, as far as can be seen without it.

    Raises:
        RefusedError: it is none.
    """
    if url.startswith(_SCHEMES):
        return
    # What is no URL may yet hold a password.
    meant = (
        f"redis://{url}" if _HOST_AND_PORT.fullmatch(url) else "redis://HOST:PORT, rediss://HOST:PORT or unix://PATH"
    )
    raise RefusedError(f"{redacted(url)} is not a Redis URL: write {meant}")


def connect(url: str, *, timeout_s: float = COMMAND_TIMEOUT_S, retries: int = 2) -> Redis:
    """An open connection pool to ``url``, checked with a PING; replies are bytes.

    A server that is silent for ``timeout_s`` is taken for gone, after so many ``retries``. For a worker both are small:
    it rides out an outage by itself, and must hear of it soon.

    Raises:
        RefusedError: it is no URL of Redis.
        LoadingError: it is still loading its data.
        RedisError: unreachable, refused, or older than Redis 6.2 (safe dequeueing needs its LMOVE).
    """
    check_url(url)
    from redis import Redis
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import BusyLoadingError
    from redis.retry import Retry

    retry = Retry(ExponentialBackoff(cap=2, base=0.05), retries)
    settings: dict[str, Any] = {"socket_timeout": timeout_s, "retry": retry, "protocol": 2}
    if not url.startswith("unix:"):  # a socket has neither, and redis-py refuses the settings there
        settings |= {"socket_keepalive": True, "socket_connect_timeout": 5}
    try:
        client = Redis.from_url(url, **settings, health_check_interval=30)
    except (ValueError, TypeError) as error:
        # Others may quote a part of the password.
        harmless = str(error).startswith(("Redis URL must", "Invalid value for"))
        why = str(error) if harmless else "what is special in a user or password is to be %-encoded"
        raise RefusedError(f"{redacted(url)} is not a Redis URL: {why}") from None
    with translated(url):
        try:
            info = client.info()
        except BusyLoadingError:
            # It refuses the PING that is sent first, and not this.
            with Redis.from_url(url, **settings) as plain:
                info = plain.info()
        except TypeError as error:  # a setting in the URL that is none is found here first
            name = (re.findall(r"argument '(\w+)'", str(error)) or ["one of its settings"])[0]
            tls = name.startswith("ssl_") and not url.startswith("rediss:")
            why = "is for rediss://, which speaks TLS" if tls else "is not known: remove it"
            raise RefusedError(f"{redacted(url)} is not a Redis URL: {name} {why}") from None
    if info.get("loading"):
        client.close()
        raise _loading(url, info)
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
        raise RedisError(f"Redis at {redacted(url)} is version {version}; 6.2 or later is needed")
    return client


def connect_patiently(
    url: str,
    say: Callable[[str], object],
    *,
    sleep: Callable[[float], object] = time.sleep,
    **settings: Any,
) -> Redis:
    """:func:`connect` for who has time: a server that is loading its data is waited for as long as that takes, and
    ``say`` is told once.

    Raises:
        RefusedError, RedisError: as there.
    """
    said = False
    while True:
        try:
            return connect(url, **settings)
        except LoadingError as error:
            if not said:
                say(f"{error.state}; waiting for it")
                said = True
        sleep(LOADING_POLL_S)
