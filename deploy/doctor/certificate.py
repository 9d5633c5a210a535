"""How long the certificate of a server with TLS is good for."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deploy.doctor.finding import Finding, failed, good, skipped, unsure
from submit.status.text import plural

__all__ = ["Certificate", "ask_certificate", "check_certificate"]

SOON_S = 60 * 86400.0
RENEW = "`promptmill deploy server ... --install` again, on the server's machine with the flags of before, renews it"
_EXPIRED, _NOT_YET = 10, 9
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What TLS says of a server's certificate: ``ends_at`` in seconds since the epoch, None where it is not known;
    ``over`` and ``not_yet`` that it, or the authority's, is not valid now by this machine's clock."""

    ends_at: float | None = None
    over: bool = False
    not_yet: bool = False

    @property
    def usable(self) -> bool:
        return not (self.over or self.not_yet)


def ask_certificate(settings: Mapping[str, Any], timeout_s: float) -> Certificate:
    """Shake hands as redis-py would by the settings of its URL, and look. All other trouble is left to whoever
    connects after this: nothing is known then."""
    if settings.get("ssl_cert_reqs") in ("none", "CERT_NONE"):
        return Certificate()
    host, port = str(settings.get("host") or "localhost"), int(settings.get("port") or 6379)
    try:
        context = ssl.create_default_context()
        context.check_hostname = False  # that is said by whoever connects
        files = {name: settings.get(f"ssl_ca_{name}") for name in ("certs", "path", "data")}
        if any(files.values()):
            context.load_verify_locations(files["certs"], files["path"], files["data"])
        if settings.get("ssl_certfile"):
            context.load_cert_chain(
                settings["ssl_certfile"], settings.get("ssl_keyfile"), settings.get("ssl_password") or ""
            )
        with (
            socket.create_connection((host, port), timeout=timeout_s) as raw,
            context.wrap_socket(raw, server_hostname=host) as wrapped,
        ):
            ends = (wrapped.getpeercert() or {}).get("notAfter")
    except ssl.SSLCertVerificationError as error:
        return Certificate(over=error.verify_code == _EXPIRED, not_yet=error.verify_code == _NOT_YET)
    except (OSError, ValueError):
        return Certificate()
    return Certificate(ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None)


def check_certificate(found: Certificate, now: float | None = None) -> Finding:
    """It is good for two months at least: nobody is told when it ends, and then the whole pool stands still."""
    name, now = "certificate", time.time() if now is None else now
    if found.not_yet:
        return failed(
            name, "the server's is not valid yet", "set the clock of this machine, or of the one that made it"
        )
    if found.over:
        return failed(name, "the server's, or its authority's, is over: nobody gets in", f"{RENEW}; or mend this clock")
    if found.ends_at is None:
        return skipped(name, "when the server's ends is not known")
    days, day = int((found.ends_at - now) // 86400), datetime.fromtimestamp(found.ends_at, UTC).date().isoformat()
    if found.ends_at - now < SOON_S:
        return unsure(name, f"the server's ends on {day}, in {plural(days, 'day')}: then nobody gets in", RENEW)
    return good(name, f"the server's is good until {day}")
