"""The users of a pool's server: their rights and their passwords, as Redis from 6.2 on and Valkey read them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from deploy.plan import rendered

__all__ = ["USERS", "acl_users", "kept_hashes"]

USERS = ("operator", "submitter", "worker")
"""The operator may do everything, the others what their part of a pool needs: see deploy/redis/README.md."""
_HASH = re.compile(r"#([0-9a-f]{64})")
_PLAIN = re.compile(r"\s>(\S+)")


def acl_users(hashes: Mapping[str, str], existing: str | None) -> str:
    """The ACL file of a server: the default user is off, the pool's users have passwords of these SHA-256, and
    whatever other users ``existing`` has stay."""
    others = [line for line in (existing or "").splitlines() if _user(line) not in {None, "default", *USERS}]
    return rendered("users.acl", **hashes) + "".join(f"{line}\n" for line in others)


def kept_hashes(existing: str | None) -> dict[str, str]:
    """SHA-256 of the passwords in an ACL file, by user: of our users only, and the first password of each."""
    found: dict[str, str] = {}
    for line in (existing or "").splitlines():
        name = _user(line)
        if name not in USERS or name in found:
            continue
        if hashed := _HASH.search(line):
            found[name] = hashed[1]
        elif plain := _PLAIN.search(line):
            found[name] = hashlib.sha256(plain[1].encode()).hexdigest()
    return found


def _user(line: str) -> str | None:
    words = line.split()
    return words[1] if len(words) > 1 and words[0] == "user" else None
