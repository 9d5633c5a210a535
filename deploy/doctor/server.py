"""Checks of a Redis by its INFO, which users of least privilege may ask, and by its clock; its operator's command."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from redis import Redis

from deploy.doctor.finding import Finding, failed, good, judged, skipped, unsure
from submit.status.text import count, size

PINGS, PINGS_S = 50, 1.0
SLOW_S, TOO_SLOW_S = 0.02, 1.0
AHEAD_S, FAR_AHEAD_S = 2.0, 60.0
"""Leases and expiry go by the server's clock, so no line is lost by a wrong one: but a record's times are its worker's,
and a minute is past what drift explains."""
SCARCE, NEARLY_FULL = 0.7, 0.95
BUSY = 0.8
OPERATOR = "operator"
"""The user who may do everything, where a server has users; `promptmill deploy server` makes it."""
_FILES = {"ssl_ca_certs": "--cacert", "ssl_certfile": "--cert", "ssl_keyfile": "--key"}

Info = Mapping[str, Any]


def check_server(info: Info, tool: str = "redis-cli") -> Iterator[Finding]:
    """The findings of one INFO, as redis-py parses it; ``tool`` is the command that reaches the server."""
    yield _version(info)
    yield _role(info)
    yield _durability(info, tool)
    yield _eviction(info, tool)
    yield _memory(info)
    yield _clients(info, tool)


def _version(info: Info) -> Finding:
    """It is new enough: connecting has checked that."""
    valkey = info.get("valkey_version")
    return good("version", f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '?')}")


def _role(info: Info) -> Finding:
    role = str(info.get("role", "master"))
    if role in ("slave", "replica"):
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return failed("role", f"a replica of {primary}: it takes no writes", "give the address of its primary")
    return good("role", "takes writes")


def _durability(info: Info, tool: str) -> Finding:
    name = "append-only file"
    if not _number(info, "aof_enabled"):
        return failed(
            name,
            "off: a restart of the server loses batches and results",
            "`appendonly yes` in its configuration, and now:",
            f"{tool} CONFIG SET appendonly yes",
        )
    free = "free space on the server's disk"
    if info.get("aof_last_write_status", "ok") != "ok":
        return failed(name, "its last write failed, and the server refuses more", free)
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        reason = "on, but the last snapshot failed, so that the server may refuse writes"
        return failed(name, reason, f"{free}, see its log, then:", f"{tool} BGSAVE")
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        reason = "on, but it could not be rewritten, and grows"
        return unsure(name, reason, f"{free}, then:", f"{tool} BGREWRITEAOF")
    return good(name, "on, and in order")


def _eviction(info: Info, tool: str) -> Finding:
    policy, evicted = str(info.get("maxmemory_policy", "noeviction")), _number(info, "evicted_keys")
    remedy = "`maxmemory-policy noeviction` in its configuration, and now:"
    mend, forget = f"{tool} CONFIG SET maxmemory-policy noeviction", f"{tool} CONFIG RESETSTAT"
    if evicted:
        reason = f"{count(evicted)} keys were evicted since its start: what they had of batches and results is lost"
        again = "submit again what `promptmill status` shows as incomplete"
        if policy == "noeviction":
            return failed("eviction", reason, f"{again}, and:", forget)
        return failed("eviction", reason, f"{again}; {remedy}", f"{mend} && {forget}")
    if policy == "noeviction":
        return good("eviction", "noeviction")
    if _number(info, "maxmemory"):
        return failed("eviction", f"{policy}: when it is full it throws batches and results away", remedy, mend)
    return unsure("eviction", f"{policy}, which throws data away as soon as a maxmemory is set", remedy, mend)


def _memory(info: Info) -> Finding:
    used, most, machine = (_number(info, key) for key in ("used_memory", "maxmemory", "total_system_memory"))
    limit, of_what = (most, "its maxmemory") if most else (machine, "its machine's memory, and no maxmemory is set")
    if not limit:
        return skipped("server memory", f"{size(used)} used; of how much it does not say")
    reason = f"{size(used)} used of {size(limit)}, {of_what}"
    more = (
        "raise maxmemory: `promptmill deploy server --maxmemory SIZE ... --install`, or its configuration"
        if most
        else "give it more memory"
    )
    remedy = f"remove old batches (`promptmill purge`), or {more}"
    if most and used >= NEARLY_FULL * limit:
        return failed("server memory", f"full: {reason}", remedy)
    return judged("server memory", reason, remedy, warns=used >= SCARCE * limit)


def _clients(info: Info, tool: str) -> Finding:
    there, most, refused = (_number(info, key) for key in ("connected_clients", "maxclients", "rejected_connections"))
    remedy, command = "`maxclients 10000` in its configuration, and now:", f"{tool} CONFIG SET maxclients 10000"
    shown = f"{count(there)} connected" + (f" of at most {most:,}" if most else "")
    shown += f"; {count(refused)} were refused since its start" if refused else ""
    return judged("clients", shown, remedy, command, warns=bool(refused or (most and there >= BUSY * most)))


def _number(info: Info, key: str) -> int:
    """A count in INFO; 0 where this server does not say."""
    value = info.get(key, 0)
    return int(value) if isinstance(value, (int, float)) else 0


def ask_latency(connection: Redis, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of so many PINGs as there is time for."""
    begun = clock()
    taken: list[float] = []
    while len(taken) < PINGS and (not taken or clock() - begun < PINGS_S):
        before = clock()
        connection.ping()
        taken.append(clock() - before)
    return taken


def check_latency(taken: Sequence[float]) -> Finding:
    """What each step with Redis costs besides; workers keep several under way, submitters send in bulk."""
    median, worst = statistics.median(taken), max(taken)
    reason = f"{median * 1000:.1f} ms at the median, {worst * 1000:.1f} ms at worst of {len(taken)} pings"
    remedy = "use a cable, not Wi-Fi, and a Redis in this network, on a machine with time for it"
    return judged("latency", reason, remedy, fails=median > TOO_SLOW_S, warns=median > SLOW_S or worst > TOO_SLOW_S)


def ask_clock(connection: Redis, now: Callable[[], float] = time.time) -> float:
    """Seconds that this machine's clock is ahead of the server's; negative where it is behind."""
    before = now()
    seconds, micros = connection.time()
    return (before + now()) / 2 - (seconds + micros / 1e6)


def check_clock(ahead_s: float, mac: bool) -> Finding:
    """Whether this machine and the server agree on the time."""
    apart, which = abs(ahead_s), "ahead of" if ahead_s > 0 else "behind"
    if apart <= AHEAD_S:
        return good("clock", f"within {max(apart, 0.1):.1f} s of the server's")
    wrong = "times in records are wrong, and what is to start at a time starts at another"
    reason = f"this machine's is {apart:,.0f} s {which} the server's: {wrong}"
    here = "sudo sntp -sS time.apple.com" if mac else "sudo timedatectl set-ntp true"
    remedy = f"set the clocks of both by the network; here: {here}"
    return judged("clock", reason, remedy, fails=apart > FAR_AHEAD_S, warns=True)


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
