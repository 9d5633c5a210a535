"""The server of a pool: its configuration, for Redis from 6.2 on and Valkey, and its users."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RULES", "Network", "acl_users", "kept_hashes", "redis_conf", "users_acl"]

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
"""What each user of a pool may: least privilege, as deploy/redis/README.md explains."""
_OPERATOR = {"operator": "~* &* +@all"}
_HASH = re.compile(r"#([0-9a-f]{64})")
_PLAIN = re.compile(r"\s>(\S+)")


@dataclass(frozen=True, slots=True)
class Network:
    """Where a server listens. ``certificates`` is the folder of its certificates; None is a server without TLS."""

    port: int
    bind: tuple[str, ...]
    certificates: Path | None


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
    """SHA-256 of the passwords of an ACL file, by user; only of users of ours, and only the first of each."""
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


def redis_conf(network: Network, *, maxmemory: int, folder: Path, acl: Path, log: Path | None) -> str:
    """The configuration; ``log`` None logs to standard output. Sizes are bytes."""
    certificates = network.certificates
    lines = [
        "# Written by `promptmill deploy server`: what is changed here is lost at its next --install.",
        "daemonize no",
        f"dir {_quoted(folder)}",
        f"logfile {_quoted(log) if log else chr(34) * 2}",
        "",
        "# Network. Users and their passwords are in the ACL file; the default user is off.",
        f"bind {' '.join(network.bind)}",
        "protected-mode yes",
        f"aclfile {_quoted(acl)}",
    ]
    if certificates is None:
        lines.append(f"port {network.port}")
    else:
        lines += [
            "port 0",
            f"tls-port {network.port}",
            f"tls-cert-file {_quoted(certificates / 'server.crt')}",
            f"tls-key-file {_quoted(certificates / 'server.key')}",
            f"tls-ca-cert-file {_quoted(certificates / 'ca.crt')}",
            'tls-protocols "TLSv1.2 TLSv1.3"',
            "# Clients show who they are by user and password; `yes` asks for a certificate of theirs besides.",
            "tls-auth-clients no",
        ]
    lines += [
        "# Hosts that vanished are noticed, and nobody is sent away for being quiet.",
        "tcp-keepalive 60",
        "timeout 0",
        "maxclients 1000",
        "",
        "# Durability: an append-only file, on disk within a second; snapshots besides would only cost.",
        "appendonly yes",
        "appendfsync everysec",
        "no-appendfsync-on-rewrite no",
        "auto-aof-rewrite-percentage 100",
        "auto-aof-rewrite-min-size 64mb",
        "aof-load-truncated yes",
        'save ""',
        "",
        "# Memory. Nothing is ever thrown away to make room: writes are refused, submitters say so, workers wait.",
        "# Rewriting the file needs memory besides: leave the machine a third more than this.",
        f"maxmemory {maxmemory}",
        "maxmemory-policy noeviction",
        "# A reader that stopped reading is cut off before its replies fill that memory.",
        "client-output-buffer-limit normal 512mb 128mb 60",
        "client-output-buffer-limit pubsub 32mb 8mb 60",
    ]
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
