"""The delivery of a batch's end to a webhook: which URLs are allowed, and what has become of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jobs.errors import RefusedError

MAX_URL_LENGTH = 2048
_ANSWER_LENGTH = 80
_YEAR_9999 = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of a batch's present end to its webhook.

    ``state`` is ``waiting`` until it is ``delivered``, or no longer tried: ``gone`` (the receiver said so), ``refused``
    (it is not to be called from there) or ``given up``. ``answer`` is what came of the last of ``tries``, ``next_at``
    the time of the next one (of Redis' clock).
    """

    state: str = "waiting"
    tries: int = 0
    answer: str | None = None
    next_at: float | None = None

    def as_dict(self, url: str) -> dict[str, Any]:
        """What ``status --json`` says of it: no more of the URL than its host, for the rest may be a secret."""
        return {"to": origin(url), "state": self.state, "tries": self.tries, "answer": self.answer}


def webhook_id(batch_id: str, ended_at: str) -> str:
    """The id under which one end of a batch is delivered, however often it is tried; a retried batch ends anew.
    ``ended_at`` is that end's time as Redis keeps it. (The same is in the script that claims a webhook.)"""
    return f"msg_{batch_id.removeprefix('b_')}_{re.sub('[^0-9]', '', ended_at)}"


def delivery_of(batch_id: str, stored: Mapping[str, str]) -> Delivery:
    """The delivery of a batch's hash. What it says of an earlier end of the batch is over.

    Raises:
        ValueError: there is something in it that was not written by us.
    """
    ended_at = stored.get(f"{stored['status']}_at", "")
    if stored.get("webhook_id") != webhook_id(batch_id, ended_at):
        return Delivery()
    answer, following = stored.get("webhook_answer", ""), stored.get("webhook_next", "")
    return Delivery(
        state=_printable(stored.get("webhook_state") or "waiting"),
        tries=int(stored.get("webhook_tries", 0)),
        answer=_printable(answer) or None,
        next_at=_time(following) if following else None,
    )


def _time(text: str) -> float:
    if not 0 <= (at := float(text)) <= _YEAR_9999:
        raise ValueError("a time that cannot be")
    return at


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:_ANSWER_LENGTH])


def origin(url: str) -> str:
    """Scheme, host and port of a URL: what may be shown of it. Paths and queries of webhooks hold secrets."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "a URL that is none"
    shown = f"[{host}]" if ":" in host else host
    return _printable(f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else ""))


def check_webhook(url: str) -> str:
    """The URL, if it may be a webhook's.

    Raises:
        RefusedError: it is not http or https, names no host, or holds what has no place there. The message does not
            repeat it, for it may hold a secret.
    """
    wrong = _wrong_with(url)
    if wrong is not None:
        raise RefusedError(f"the webhook {wrong}; give a URL such as https://example.com/hooks/nightly")
    return url


def _wrong_with(url: str) -> str | None:
    if not isinstance(url, str):
        return "is no text"
    if len(url) > MAX_URL_LENGTH:
        return f"has more than {MAX_URL_LENGTH} characters"
    if not re.fullmatch("[!-~]+", url):
        return "has characters that no URL has: what is not ASCII is to be %-encoded, a host's name as xn--"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https"):
        return "does not begin with http:// or https://"
    if "@" in parts.netloc:
        return "has a user or password in it, which Redis would keep in the clear: its signature says who sends it"
    if not parts.hostname or port == 0 or "\\" in url:
        return "names no host"
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", parts.netloc):
        return "has a host with other characters than letters, digits, dots, - and _"
    if parts.fragment or "#" in url:
        return "has a part after #, which is not sent"
    return None
