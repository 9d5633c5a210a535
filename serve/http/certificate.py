"""The certificate of a server, looked at before it serves."""

from __future__ import annotations

import ssl
from pathlib import Path

from jobs.errors import RefusedError


def check_certificate(certificate: Path, private_key: Path) -> None:
    """See that a server can use them.

    Raises:
        RefusedError: one cannot be read, or is none, or the key is locked or another's.
    """

    def locked() -> str:
        raise RefusedError(f"--tls-key {private_key}: a password locks it: give one without (`openssl pkey -in ...`)")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, locked)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise RefusedError(f"--tls-key {private_key} is not the key of {certificate}") from None
        both = f"--tls-cert {certificate}, --tls-key {private_key}"
        raise RefusedError(f"{both}: they hold no certificate (PEM) with its private key") from None
    except OSError as error:
        raise RefusedError(f"--tls-cert {certificate}, --tls-key {private_key}: {error.strerror or error}") from None
