"""The whole examination, in the order in which a person would look.

The machine, its models, the way to Redis, the server, the pool. What an earlier check rules out is not tried.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.connection import parse_url
from redis.exceptions import NoPermissionError, ResponseError

from deploy.doctor.access import (
    check_certificate,
    check_encryption,
    check_password,
    judge_permissions,
    open_to_strangers,
    try_permissions,
)
from deploy.doctor.deployed import Deployed, check_deployed
from deploy.doctor.disk import check_data_folder, check_disks, check_room
from deploy.doctor.finding import Finding, FindingState, Section, failed, skipped
from deploy.doctor.mac import POWER_CHECKS, check_power
from deploy.doctor.machine import (
    Device,
    Machine,
    ask_device,
    check_device,
    check_macos,
    check_package,
    check_processor,
    check_python,
    check_wired_limit,
)
from deploy.doctor.models import ModelFiles, check_memory, check_model, find_model, hub_cache
from deploy.doctor.network import is_loopback, reach
from deploy.doctor.pool import ask_pool, check_pool
from deploy.doctor.server import ask_clock, ask_latency, check_clock, check_latency, check_server, operator_tool
from deploy.host import user_name
from jobs.embedded.server import data_folder, embedded_server
from jobs.errors import RedisError, RefusedError
from jobs.redis.connect import connect, full, redacted, translated

REDIS_TIMEOUT_S = 3.0
NO_WORKER = "no worker runs here (--worker checks for one)"
UNREACHED = "Redis was not reached"
_OF_WORKERS = ("processor", "macOS", "mlx", "mlx-lm", "device", "memory", "wired limit", *POWER_CHECKS)
_OF_SERVERS = ("version", "append-only file", "eviction", "permissions", "latency", "clock", "workers")


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


@dataclass(frozen=True, slots=True)
class Examination:
    """An examination of this machine, and of a Redis (None: the embedded server). With ``worker`` it covers what a
    worker needs, and these models; ``deployed`` are workers of this machine that its user may have meant."""

    machine: Machine
    environ: Mapping[str, str]
    redis_url: str | None
    models: tuple[str, ...]
    worker: bool
    deployed: tuple[Deployed, ...] = ()

    def sections(self) -> Iterator[Section]:
        """The sections, one after the other as they are known."""
        yield Section("machine", "This machine", list(self._machine()))
        address = f"Redis at {redacted(self.redis_url)}" if self.redis_url else "Redis, this user's embedded server"
        redis, pool = Section("redis", address), Section("pool", "The pool")
        with ExitStack() as stack:
            try:
                url = self.redis_url or stack.enter_context(embedded_server(data_folder(self.environ)))
                way = self._way(url, redis.findings)
                if way is not None:
                    with translated(url), closing(connect(url, timeout_s=REDIS_TIMEOUT_S, retries=0)) as opened:
                        self._ask(opened, way, redis.findings)
                        pool.findings += _allowed("pool", lambda: check_pool(ask_pool(opened)))
            except (RedisError, RefusedError) as error:
                redis.findings.append(_unreachable(error))
            if not pool.findings:
                there = {finding.name for finding in redis.findings}
                redis.findings += [skipped(name, UNREACHED) for name in _OF_SERVERS if name not in there]
        yield from (section for section in (redis, pool) if section.findings)

    def _machine(self) -> Iterator[Finding]:
        data, cache = data_folder(self.environ), hub_cache(self.environ)
        folders = [("data folder", data)]
        models: list[ModelFiles] = []
        yield from check_deployed(self.deployed, user_name(os.geteuid()) or str(os.geteuid()))
        if self.worker:
            yield check_processor(self.machine)
            yield check_macos(self.machine)
        yield check_python(self.machine)
        if self.worker:
            models = [find_model(name, self.environ) for name in dict.fromkeys(self.models)]
            yield from self._engine(models)
            yield from check_power(self.machine.mac)
            folders.append(("spool", Path(self.environ.get("PROMPTMILL_WORKER_SPOOL") or data / "spool")))
            folders.append(("hub's cache", cache))
        yield check_data_folder(data)
        yield from check_disks(folders)
        fetched = [model.name for model in models if model.problem is not None and model.fetch and not model.offline]
        if (room := check_room(fetched, cache)) is not None:
            yield room
        if not self.worker:
            named = tuple(f"model {name}" for name in self.models)
            yield from (skipped(name, NO_WORKER) for name in (*_OF_WORKERS, *named))

    def _engine(self, models: list[ModelFiles]) -> Iterator[Finding]:
        """MLX, and the models that it is to run."""
        machine, device = self.machine, Device()
        yield from (check_package(name, package) for name, package in machine.packages.items())
        if machine.runs_workers:
            device = ask_device()
            yield check_device(machine, device)
        else:
            yield skipped("device", "without mlx and mlx-lm there is nothing to try")
        yield from map(check_model, models)
        yield from check_memory(machine, device, models)
        yield check_wired_limit(machine)

    def _way(self, url: str, findings: list[Finding]) -> Way | None:
        """Look whether the server's address takes connections, and whether its certificate is good; None where not."""
        try:
            settings: Mapping[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError:
            return Way(url, {})
        if "path" in settings:
            findings.append(skipped("network", "a socket of this machine"))
            return Way(url, settings)
        reached = reach(self.machine, str(settings.get("host") or "localhost"), int(settings.get("port") or 6379))
        findings.append(reached.finding)
        if reached.address is None:
            return None
        way = Way(url, settings, reached.address)
        if way.encrypted:
            findings.append(check_certificate(settings, REDIS_TIMEOUT_S))
            if findings[-1].state is FindingState.FAIL:
                return None
        return way

    def _ask(self, connection: Redis, way: Way, findings: list[Finding]) -> None:
        """Ask the server everything."""
        findings += check_server(connection.info(), way.tool)
        findings += _allowed("permissions", lambda: [self._permissions(connection, way)])
        findings.append(check_encryption(network=bool(way.address), encrypted=way.encrypted, loopback=way.loopback))
        if way.address:
            findings.append(check_password(open_to_strangers(connection), loopback=way.loopback))
        findings += _allowed("latency", lambda: [check_latency(ask_latency(connection))])
        findings += _allowed("clock", lambda: [check_clock(ask_clock(connection), self.machine.mac is not None)])

    def _permissions(self, connection: Redis, way: Way) -> Finding:
        try:
            refused = try_permissions(connection, f"doctor-{secrets.token_hex(8)}", worker=self.worker)
        except ResponseError as error:
            if not full(error):
                raise
            return skipped("permissions", "cannot be tried while Redis is full")
        return judge_permissions(refused, way.url, worker=self.worker, tool=way.tool)


def _allowed(name: str, ask: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings, or that this user may not ask: which of it a submitter or worker needs, `permissions` says."""
    try:
        return list(ask())
    except NoPermissionError as error:
        return [skipped(name, f"this user may not ask for it: {error}")]


def _unreachable(error: RedisError | RefusedError) -> Finding:
    """The error's message ends with its remedy."""
    reason, _, remedy = str(error).rpartition("; ")
    return failed("connection", reason or remedy, remedy if reason else "give --redis URL")
