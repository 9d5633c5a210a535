"""Signatures of webhooks, by the scheme of Standard Webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from jobs.errors import RefusedError

SECRET_PREFIX = "whsec_"
SECRET_BYTES = (24, 64)
REMEDY = 'make one: echo "whsec_$(openssl rand -base64 32)", and give it in PROMPTMILL_WEBHOOK_SECRET'


class Signer:
    """Signs by every secret of ``text``, one or several separated by spaces: receivers know the old or the new one.

    Raises:
        RefusedError: one of them is none. Messages do not repeat it.
    """

    def __init__(self, text: str) -> None:
        self._keys = [_key(secret) for secret in text.split()]
        if not self._keys:
            raise RefusedError(f"the webhook secret is empty; {REMEDY}")

    def __repr__(self) -> str:
        return f"Signer({len(self._keys)} secrets)"

    def sign(self, webhook_id: str, seconds: int, body: bytes) -> str:
        """The value of the header ``webhook-signature``."""
        content = b"%s.%d.%s" % (webhook_id.encode(), seconds, body)
        digests = (hmac.digest(key, content, hashlib.sha256) for key in self._keys)
        return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not SECRET_BYTES[0] <= len(key) <= SECRET_BYTES[1]:
        least, most = SECRET_BYTES
        raise RefusedError(f"the webhook secret must be whsec_ and the base64 of {least} to {most} bytes; {REMEDY}")
    return key
