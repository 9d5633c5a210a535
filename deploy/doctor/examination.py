"""The whole examination, in the order in which a person would look: the machine, its models, the way to Redis, the
server, the pool. What an earlier check rules out is not tried."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.doctor.access import (
    ask_certificate,
    check_certificate,
    check_encryption,
    check_password,
    check_permissions,
    open_to_strangers,
    try_permissions,
)
from deploy.doctor.deployed import Deployed, check_deployed, this_user
from deploy.doctor.device import Device, ask_device, check_device
from deploy.doctor.disk import check_data_folder, check_disks, check_room
from deploy.doctor.finding import Finding, Section, failed, skipped
from deploy.doctor.mac import POWER_CHECKS, check_power
from deploy.doctor.machine import Machine, check_macos, check_package, check_processor, check_python
from deploy.doctor.memory import check_memory, check_wired_limit
from deploy.doctor.models import ModelFiles, check_model, find_model, hub_cache
from deploy.doctor.network import is_loopback, reach
from deploy.doctor.pool import ask_pool, check_pool
from deploy.doctor.server import ask_clock, ask_latency, check_clock, check_latency, check_server, operator_tool
from jobs.embedded.server import data_folder, embedded_server
from jobs.errors import RedisError, RefusedError
from jobs.redis.connect import connect, full, redacted, translated

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
    """What is to be examined: a Redis (None: the embedded server), models, and whether workers run here; ``deployed``
    are workers of this machine that its user may have meant."""

    redis_url: str | None
    models: tuple[str, ...]
    worker: bool
    deployed: tuple[Deployed, ...] = ()


def examine(request: Request, machine: Machine, environ: Mapping[str, str]) -> Iterator[Section]:
    """The sections, one after the other as they are known."""
    yield Section("machine", "This machine", list(_machine(request, machine, environ)))
    yield from _redis(request, machine, environ)


def _machine(request: Request, machine: Machine, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield from check_deployed(request.deployed, this_user())
    if request.worker:
        yield check_processor(machine)
        yield check_macos(machine)
    yield check_python(machine)
    models = [find_model(name, environ) for name in dict.fromkeys(request.models)] if request.worker else []
    if request.worker:
        yield from _engine(machine, models)
        yield from check_power(machine.mac)
    yield check_data_folder(data_folder(environ))
    yield from check_disks(_folders(environ, worker=request.worker))
    fetched = [model.name for model in models if model.problem is not None and model.fetch and not model.offline]
    if (room := check_room(fetched, hub_cache(environ))) is not None:
        yield room
    if not request.worker:
        named = tuple(f"model {name}" for name in request.models)
        yield from (skipped(name, NO_WORKER) for name in (*_OF_WORKERS, *named))


def _engine(machine: Machine, models: Sequence[ModelFiles]) -> Iterator[Finding]:
    """MLX, and the models that it is to run."""
    yield from (check_package(name, package) for name, package in machine.packages.items())
    device = Device()
    if machine.runs_workers:
        device = ask_device()
        yield check_device(machine, device)
    else:
        yield skipped("device", "without mlx and mlx-lm there is nothing to try")
    yield from map(check_model, models)
    yield from check_memory(machine, device, models)
    yield check_wired_limit(machine)


def _folders(environ: Mapping[str, str], *, worker: bool) -> list[tuple[str, Path]]:
    data = data_folder(environ)
    folders = [("data folder", data)]
    if worker:
        folders.append(("spool", Path(environ.get("PROMPTMILL_WORKER_SPOOL") or data / "spool")))
        folders.append(("hub's cache", hub_cache(environ)))
    return folders


def _redis(request: Request, machine: Machine, environ: Mapping[str, str]) -> Iterator[Section]:
    title = f"Redis at {redacted(request.redis_url)}" if request.redis_url else "Redis, this user's embedded server"
    section = Section("redis", title)
    pool = Section("pool", "The pool")
    with contextlib.ExitStack() as stack:
        try:
            url = request.redis_url or stack.enter_context(embedded_server(data_folder(environ)))
            way = _way(section, machine, url)
            if way is not None:
                with translated(url), contextlib.closing(connect(url, timeout_s=REDIS_TIMEOUT_S, retries=0)) as opened:
                    _ask(section, pool, opened, request, machine, way)
        except (RedisError, RefusedError) as error:
            section.findings.append(_unreachable(error))
        if not pool.findings:
            there = {finding.name for finding in section.findings}
            section.findings += [skipped(name, UNREACHED) for name in _OF_SERVERS if name not in there]
    yield section
    if pool.findings:
        yield pool


@dataclass(frozen=True, slots=True)
class Way:
    """How a Redis is reached: its URL, that as redis-py parses it, and the address that answered. That is empty where
    there is none: a socket, or an URL that redis-py is to complain about."""

    url: str
    settings: Mapping[str, Any]
    address: str = ""

    @property
    def encrypted(self) -> bool:
        return self.url.startswith("rediss:")

    @property
    def loopback(self) -> bool:
        return not self.address or is_loopback(self.address)

    @property
    def tool(self) -> str:
        return operator_tool(self.settings, encrypted=self.encrypted)


def _way(section: Section, machine: Machine, url: str) -> Way | None:
    """Look whether the server's address takes connections, and whether its certificate is good; None where not."""
    from redis.connection import parse_url

    try:
        settings: Mapping[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        return Way(url, {})
    if "path" in settings:
        section.findings.append(skipped("network", "a socket of this machine"))
        return Way(url, settings)
    reached = reach(machine, str(settings.get("host") or "localhost"), int(settings.get("port") or 6379))
    section.findings.append(reached.finding)
    if reached.address is None:
        return None
    way = Way(url, settings, reached.address)
    if way.encrypted:
        certificate = ask_certificate(settings, REDIS_TIMEOUT_S)
        section.findings.append(check_certificate(certificate))
        if not certificate.usable:
            return None
    return way


def _ask(section: Section, pool: Section, connection: Redis, request: Request, machine: Machine, way: Way) -> None:
    add = section.findings.extend
    add(check_server(connection.info(), way.tool))
    add(_allowed("permissions", lambda: [_permissions(connection, way, request.worker)]))
    add([check_encryption(network=bool(way.address), encrypted=way.encrypted, loopback=way.loopback)])
    if way.address:
        add([check_password(open_to_strangers(connection), loopback=way.loopback)])
    add(_allowed("latency", lambda: [check_latency(ask_latency(connection))]))
    add(_allowed("clock", lambda: [check_clock(ask_clock(connection), machine.mac is not None)]))
    pool.findings += _allowed("pool", lambda: check_pool(ask_pool(connection)))


def _permissions(connection: Redis, way: Way, worker: bool) -> Finding:
    from redis.exceptions import ResponseError

    try:
        refused = try_permissions(connection, f"doctor-{secrets.token_hex(8)}", worker=worker)
    except ResponseError as error:
        if not full(error):
            raise
        return skipped("permissions", "cannot be tried while Redis is full")
    return check_permissions(refused, way.url, worker=worker, tool=way.tool)


def _allowed(name: str, ask: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings, or that this user may not ask: which of it a submitter or worker needs, `permissions` says."""
    from redis.exceptions import NoPermissionError

    try:
        return list(ask())
    except NoPermissionError as error:
        return [skipped(name, f"this user may not ask for it: {error}")]


def _unreachable(error: RedisError | RefusedError) -> Finding:
    """The error's message ends with its remedy."""
    reason, _, remedy = str(error).rpartition("; ")
    return failed("connection", reason or remedy, remedy if reason else "give --redis URL")
