"""The users of a pool's server: their rights and their passwords, as Redis from 6.2 on and Valkey read them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

__all__ = ["RULES", "acl_users", "kept_hashes"]

_ALL_KINDS = (
    "-@all +@read +@write +@connection +@transaction{pubsub} +eval +evalsha +script|load +script|exists +time "
    "-@dangerous -@admin -randomkey +info"
)
RULES: Mapping[str, str] = {
    "submitter": "resetkeys ~promptmill:* ~rq:queues ~rq:queue:* ~rq:job:* ~rq:wip:* ~rq:executions:* ~rq:suspended "
    "resetchannels " + _ALL_KINDS.format(pubsub=""),
    "worker": "resetkeys ~promptmill:* ~rq:* resetchannels &rq:* "
    + _ALL_KINDS.format(pubsub=" +@pubsub")
    + " +client|list",
    "operator": "~* &* +@all",
}
"""What each user of a pool may do: least privilege, as deploy/redis/README.md explains, but for its operator."""
_HASH = re.compile(r"#([0-9a-f]{64})")
_PLAIN = re.compile(r"\s>(\S+)")


def acl_users(hashes: Mapping[str, str], existing: str | None) -> str:
    """The ACL file of a server: the default user is off, the pool's users have passwords of these SHA-256, and
    whatever other users ``existing`` has stay."""
    lines = ["user default off", *(f"user {name} on #{hashes[name]} {RULES[name]}" for name in RULES)]
    others = [line for line in (existing or "").splitlines() if _user(line) not in {None, "default", *RULES}]
    return "".join(f"{line}\n" for line in (*lines, *others))


def kept_hashes(existing: str | None) -> dict[str, str]:
    """SHA-256 of the passwords in an ACL file, by user: of our users only, and the first password of each."""
    found: dict[str, str] = {}
    for line in (existing or "").splitlines():
        name = _user(line)
        if name not in RULES or name in found:
            continue
        if hashed := _HASH.search(line):
            found[name] = hashed[1]
        elif plain := _PLAIN.search(line):
            found[name] = hashlib.sha256(plain[1].encode()).hexdigest()
    return found


def _user(line: str) -> str | None:
    words = line.split()
    return words[1] if len(words) > 1 and words[0] == "user" else None
