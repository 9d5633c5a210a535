"""The whole examination, in the order in which a person would look: the machine, its models, the way to Redis, the
server, the pool. What an earlier check rules out is not tried."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.connect import connect, full, redacted, translated
from jobs.embedded import data_folder, embedded_server
from jobs.errors import RedisError
from submit.doctor.access import (
    check_encryption,
    check_password,
    check_permissions,
    open_to_strangers,
    try_permissions,
)
from submit.doctor.device import Device, ask_device, check_device
from submit.doctor.disk import check_data_folder, check_disks
from submit.doctor.finding import Finding, Section, failed, skipped
from submit.doctor.host import Host
from submit.doctor.machine import check_macos, check_package, check_processor, check_python
from submit.doctor.memory import check_memory, check_wired_limit
from submit.doctor.models import check_model, find_model, hub_cache
from submit.doctor.network import is_loopback, reach
from submit.doctor.pool import ask_pool, check_pool
from submit.doctor.power import POWER_CHECKS, check_power
from submit.doctor.server import ask_clock, ask_latency, check_clock, check_latency, check_server

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["Request", "examine"]

REDIS_TIMEOUT_S = 3.0
NO_WORKER = "no worker runs here (--worker checks for one)"
UNREACHED = "Redis was not reached"
_OF_WORKERS = ("processor", "macOS", "mlx", "mlx-lm", "device", "memory", "wired limit", *POWER_CHECKS)
_OF_SERVERS = ("version", "append-only file", "eviction", "permissions", "latency", "clock", "workers")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be examined: a Redis (None: the embedded server), models, and whether workers run here."""

    redis_url: str | None
    models: tuple[str, ...]
    worker: bool


def examine(request: Request, host: Host, environ: Mapping[str, str]) -> Iterator[Section]:
    """The sections, one after the other as they are known."""
    yield Section("machine", "This machine", list(_machine(request, host, environ)))
    yield from _redis(request, host, environ)


def _machine(request: Request, host: Host, environ: Mapping[str, str]) -> Iterator[Finding]:
    if request.worker:
        yield check_processor(host)
        yield check_macos(host)
    yield check_python(host)
    if request.worker:
        yield from _engine(request, host, environ)
        yield from check_power(host.mac)
    yield check_data_folder(data_folder(environ))
    yield from check_disks(_folders(environ, worker=request.worker))
    if not request.worker:
        models = tuple(f"model {name}" for name in request.models)
        yield from (skipped(name, NO_WORKER) for name in (*_OF_WORKERS, *models))


def _engine(request: Request, host: Host, environ: Mapping[str, str]) -> Iterator[Finding]:
    """MLX, and the models that it is to run."""
    yield from (check_package(name, package) for name, package in host.packages.items())
    device = Device()
    if host.runs_workers:
        device = ask_device()
        yield check_device(host, device)
    else:
        yield skipped("device", "without mlx and mlx-lm there is nothing to try")
    models = [find_model(name, environ) for name in dict.fromkeys(request.models)]
    yield from map(check_model, models)
    yield from check_memory(host, device, models)
    yield check_wired_limit(host)


def _folders(environ: Mapping[str, str], *, worker: bool) -> list[tuple[str, Path]]:
    data = data_folder(environ)
    folders = [("data folder", data)]
    if worker:
        folders.append(("spool", Path(environ.get("PROMPTMILL_WORKER_SPOOL") or data / "spool")))
        folders.append(("hub's cache", hub_cache(environ)))
    return folders


def _redis(request: Request, host: Host, environ: Mapping[str, str]) -> Iterator[Section]:
    title = f"Redis at {redacted(request.redis_url)}" if request.redis_url else "Redis, this user's embedded server"
    section = Section("redis", title)
    pool = Section("pool", "The pool")
    with contextlib.ExitStack() as stack:
        try:
            url = request.redis_url or stack.enter_context(embedded_server(data_folder(environ)))
            address = _way(section, host, url)
            if address is not None:
                _server(section, pool, request, host, url, address)
        except RedisError as error:
            section.findings.append(_unreachable(error))
        if not pool.findings:
            there = {finding.name for finding in section.findings}
            section.findings += [skipped(name, UNREACHED) for name in _OF_SERVERS if name not in there]
    yield section
    if pool.findings:
        yield pool


def _way(section: Section, host: Host, url: str) -> str | None:
    """Look whether the server's address takes connections; the address, None where it does not. It is empty where
    there is none: a socket, or an URL that redis-py is to complain about."""
    from redis.connection import parse_url

    try:
        settings = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        return ""
    if "path" in settings:
        section.findings.append(skipped("network", "a socket of this machine"))
        return ""
    reached = reach(host, str(settings.get("host") or "localhost"), int(settings.get("port") or 6379))
    section.findings.append(reached.finding)
    return reached.address


def _server(section: Section, pool: Section, request: Request, host: Host, url: str, address: str) -> None:
    """Ask the server everything."""
    with translated(url):
        connection = connect(url, timeout_s=REDIS_TIMEOUT_S, retries=0)
        try:
            _ask(section, pool, connection, request, host, url, address)
        finally:
            connection.close()


def _ask(
    section: Section, pool: Section, connection: Redis, request: Request, host: Host, url: str, address: str
) -> None:
    name = f"doctor-{secrets.token_hex(8)}"
    loopback = not address or is_loopback(address)
    add = section.findings.extend
    add(check_server(connection.info()))
    add(_allowed("permissions", lambda: [_permissions(connection, name, url, request.worker)]))
    encrypted = url.startswith("rediss:")
    add([check_encryption(network=bool(address), encrypted=encrypted, loopback=loopback)])
    if address:
        add([check_password(open_to_strangers(connection), loopback=loopback)])
    add(_allowed("latency", lambda: [check_latency(ask_latency(connection))]))
    add(_allowed("clock", lambda: [check_clock(ask_clock(connection), host.mac is not None)]))
    pool.findings += _allowed("pool", lambda: check_pool(ask_pool(connection)))


def _permissions(connection: Redis, name: str, url: str, worker: bool) -> Finding:
    from redis.exceptions import ResponseError

    try:
        return check_permissions(try_permissions(connection, name, worker=worker), url, worker=worker)
    except ResponseError as error:
        if not full(error):
            raise
        return skipped("permissions", "cannot be tried while Redis is full")


def _allowed(name: str, ask: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings, or that this user may not ask: which of it a submitter or worker needs, `permissions` says."""
    from redis.exceptions import NoPermissionError

    try:
        return list(ask())
    except NoPermissionError as error:
        return [skipped(name, f"this user may not ask for it: {error}")]


def _unreachable(error: RedisError) -> Finding:
    """The error's message ends with its remedy."""
    reason, _, remedy = str(error).rpartition("; ")
    return failed("connection", reason or remedy, remedy if reason else "give --redis URL")
