"""The command of the server's operator: remedies are typed into it, and it has to get in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ["OPERATOR", "operator_tool"]

OPERATOR = "operator"
"""The user who may do everything, where a server has users; `promptmill deploy server` makes it."""
_FILES = {"ssl_ca_certs": "--cacert", "ssl_certfile": "--cert", "ssl_keyfile": "--key"}


def operator_tool(settings: Mapping[str, Any], *, encrypted: bool) -> str:
    """`redis-cli` with what it needs to reach the server of a URL whose settings are those, as redis-py parses it: the
    address, TLS, and a user or password, which it asks for."""
    words = ["redis-cli"]
    if "path" in settings:
        words += ["-s", str(settings["path"])]
    else:
        host, port = str(settings.get("host") or "localhost"), int(settings.get("port") or 6379)
        words += ["-h", host] if encrypted or host not in ("localhost", "127.0.0.1") else []
        words += ["-p", str(port)] if port != 6379 else []
    if encrypted:
        words.append("--tls")
        for name, flag in _FILES.items():
            if name in settings:
                words += [flag, str(settings[name])]
        if settings.get("ssl_cert_reqs") in ("none", "CERT_NONE"):
            words.append("--insecure")
    if settings.get("username") not in (None, "", "default"):
        words += ["--user", OPERATOR, "--askpass"]
    elif settings.get("password"):
        words.append("--askpass")
    return shlex.join(words)
