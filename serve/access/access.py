"""Who asks: what a key may use and see. Without keys everybody on this machine is let in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from serve.access.keyfile import KeyRing
from serve.errors import ApiError
from serve.settings import is_loopback

EVERYBODY = ""
"""The owner of what is made without keys."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may use and see: ``owner`` is the name of its key, ``models`` those it may use (none named: all);
    an ``admin`` sees what all have made, that of the command line too."""

    owner: str = EVERYBODY
    admin: bool = True
    models: tuple[str, ...] = ()

    def sees(self, owner: str | None) -> bool:
        """Whether what this owner made may be seen; None owns what the command line made."""
        return self.admin or owner == self.owner

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


class Gate:
    """Lets requests in: by their key where there are keys, else by the host that they name. Without keys a web page
    of another site is kept out too, unless it is of one of ``origins``."""

    def __init__(self, keys: KeyRing | None, origins: Collection[str] = ()) -> None:
        self._keys, self._origins = keys, frozenset(origins)

    def enter(self, headers: Mapping[bytes, bytes], *, cookie: str | None = None) -> Access:
        """What the request with these headers may do; ``cookie`` is the key that came as one, where that counts.

        Raises:
            ApiError: it is not let in.
        """
        if self._keys is None:
            host = headers.get(b"host", b"").decode("latin-1")
            _check_host(host)
            self._check_origin(headers.get(b"origin", b"").decode("latin-1"), host)
            return Access()
        token = _token(headers) or cookie
        if token is None:
            raise ApiError(
                401,
                "You didn't provide an API key. Give one as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        key = self._keys.find(token)
        if key is None:
            raise ApiError(
                401,
                "Incorrect API key provided: it is unknown, was revoked or has expired.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Access(key.name, key.admin, key.models)

    def _check_origin(self, origin: str, host: str) -> None:
        """Refuse what a browser sends for a web page of another site: it names the page's origin."""
        if origin and origin not in self._origins and origin.partition("://")[2] != host:
            raise ApiError(
                403,
                "This server has no keys, and takes nothing from web pages of other sites: name the page's origin with "
                "--cors-origin.",
                code="origin_not_allowed",
            )


def _token(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    azure = headers.get(b"api-key", b"").decode("latin-1").strip()
    return azure or None


def _check_host(host: str) -> None:
    """Refuse what a web page sends that had its name point here: without keys only this machine's own names count."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if not is_loopback(name or ""):
        raise ApiError(
            403,
            "This server has no keys, and answers to localhost and 127.0.0.1 only; the Host header names another.",
            code="host_not_allowed",
        )
