"""The users of a pool's server: their rights and their passwords, as Redis from 6.2 on and Valkey read them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

__all__ = ["RULES", "acl_users", "kept_hashes", "users_acl"]

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
}
"""What each user of a pool may do: least privilege, as deploy/redis/README.md explains."""
_OPERATOR = {"operator": "~* &* +@all"}
_HASH = re.compile(r"#([0-9a-f]{64})")
_PLAIN = re.compile(r"\s>(\S+)")


def users_acl(passwords: Mapping[str, str], rules: Mapping[str, str] = RULES) -> str:
    """An ACL file: the default user is off, and each user has its password (``>`` plain or ``#`` hashed)."""
    lines = ["user default off", *(f"user {name} on {passwords[name]} {rule}" for name, rule in rules.items())]
    return "\n".join(lines) + "\n"


def acl_users(passwords: Mapping[str, str], existing: str | None) -> str:
    """The ACL file of a server: the pool's users and its operator, by the hashes of passwords, and whatever other users
    ``existing`` has."""
    rules = {**RULES, **_OPERATOR}
    text = users_acl({name: f"#{passwords[name]}" for name in rules}, rules)
    own = {"default", *rules}
    others = [line for line in (existing or "").splitlines() if _user(line) not in {None, *own}]
    return text + "".join(f"{line}\n" for line in others)


def kept_hashes(existing: str | None) -> dict[str, str]:
    """SHA-256 of the passwords in an ACL file, by user: of our users only, and the first password of each."""
    found: dict[str, str] = {}
    for line in (existing or "").splitlines():
        name = _user(line)
        if name not in {*RULES, *_OPERATOR} or name in found:
            continue
        if hashed := _HASH.search(line):
            found[name] = hashed[1]
        elif plain := _PLAIN.search(line):
            found[name] = hashlib.sha256(plain[1].encode()).hexdigest()
    return found


def _user(line: str) -> str | None:
    words = line.split()
    return words[1] if len(words) > 1 and words[0] == "user" else None
