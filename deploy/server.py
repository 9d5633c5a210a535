"""The Redis of a pool, as a daemon: configuration, users, certificates."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.init import launchd, service_plan, systemd
from deploy.init.service import CA_FILE, Deployment, ServiceSpec
from deploy.plan import ETC, File, Folder, Plan, PlanStep, rendered, root_file, root_group, shipped
from jobs.errors import RefusedError

CONFIG = ETC / "redis.conf"
CERTIFICATES = ETC / "tls"
MAKE_CERTIFICATES = ETC / "make-certs.sh"
RENEW_CERTIFICATES = ETC / "renew-certs.sh"
STOP_S = 120
"""Seconds to write what is not yet on the disk."""
LEAST_MEMORY = 64 * 2**20
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_BIND = re.compile(r"-?(\*|::\*|[0-9A-Fa-f.:]+|[A-Za-z0-9][A-Za-z0-9.-]*)")


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """A server: ``hosts`` are its names in URLs, the first that of the URLs that are written; passwords that are there
    stay but with ``new_passwords``."""

    hosts: tuple[str, ...]
    maxmemory: int
    port: int = 6379
    bind: tuple[str, ...] = ("*", "-::*")
    tls: bool = True
    new_passwords: bool = False
    token: Callable[[], str] = lambda: secrets.token_hex(32)


def server_plan(deployment: Deployment, flags: ServerFlags) -> Plan:
    """The daemon of a server, its configuration and users, and URLs for those who are to reach it.

    Raises:
        RefusedError: something does not fit.
    """
    _check(flags)
    init, label, account = deployment.init, deployment.label, deployment.account
    service = ServiceSpec(
        deployment,
        about="Redis of a promptmill pool",
        command=(str(deployment.program), str(CONFIG)),
        environment={"HOME": str(account.home)},
        stop_s=STOP_S,
        foreground=True,  # every machine of the pool waits for it
    )
    plan = service_plan(service)
    renewal = _renewal(deployment, flags) if flags.tls else Plan(label, init)
    folders, files, steps = [*plan.folders], [_conf(deployment, flags), *_users(deployment, flags)], []
    left = [f"{account.home} (data, users)", f"user {account.user}", f"{ETC}/*.url (passwords)"]
    if flags.tls:
        folders.append(Folder(CERTIFICATES, 0o755, "root", root_group(init)))
        scripts = {MAKE_CERTIFICATES: "redis/make-certs.sh", RENEW_CERTIFICATES: "redis/renew-certs.sh"}
        files += [root_file(init, path, shipped(name), 0o755) for path, name in scripts.items()]
        steps += _certify(deployment, flags)
    if init == "systemd":
        # A server that rewrites its file is copied for a moment: without this the kernel may refuse it.
        sysctl = Path("/etc/sysctl.d") / f"60-{label}.conf"
        files.append(root_file(init, sysctl, "vm.overcommit_memory = 1\n"))
        steps.append(PlanStep(("sysctl", "-q", "-p", str(sysctl)), may_fail=True))
        left.append("vm.overcommit_memory = 1, until this machine starts anew (0 is Linux's own)")
    if flags.tls:
        left.append(f"{CERTIFICATES} and {CA_FILE}")
    return replace(
        plan,
        folders=tuple(folders),
        files=(*files, *plan.files, *renewal.files),
        start=(*steps, *plan.start, *renewal.start),
        left=tuple(left),
        notes=tuple(_notes(init, label, flags)),
    )


def _check(flags: ServerFlags) -> None:
    for host in flags.hosts:
        if not _HOST.fullmatch(host):
            raise RefusedError(f"--host {host!r}: give a name or address as it stands in URLs, such as redis.local")
    for address in flags.bind:
        if not _BIND.fullmatch(address):
            raise RefusedError(f"--bind {address!r}: give an address of this machine, or * for all")
    if flags.maxmemory < LEAST_MEMORY:
        raise RefusedError("--maxmemory is too small: give at least 64M; batches wait in memory until they are purged")


def _conf(deployment: Deployment, flags: ServerFlags) -> File:
    """The server's configuration: under launchd it logs into a file, else to standard output."""
    home, listen = deployment.account.home, f"port {flags.port}\n"
    if flags.tls:
        listen = rendered("redis-tls.conf", port=flags.port, folder=CERTIFICATES)
    text = rendered(
        "redis.conf",
        folder=_quoted(home),
        log=_quoted(launchd.log_file(deployment.label) if deployment.init == "launchd" else ""),
        bind=" ".join(flags.bind),
        acl=_quoted(home / "users.acl"),
        listen=listen,
        maxmemory=flags.maxmemory,
    )
    return root_file(deployment.init, CONFIG, text)


def _quoted(path: Path | str) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _users(deployment: Deployment, flags: ServerFlags) -> list[File]:
    """The ACL file, and for each password that is new a URL, for root alone."""
    files: list[File] = []
    account = deployment.account
    hashes = {} if flags.new_passwords else kept_hashes(deployment.existing)
    for user in USERS:
        if user in hashes:
            continue
        password = flags.token()
        hashes[user] = hashlib.sha256(password.encode()).hexdigest()
        url = f"{_url(flags, user, password)}\n"
        own = root_file(deployment.init, ETC / f"{user}.url", url, 0o600)
        files.append(replace(own, shown=url.replace(password, "***"), left=True))
    text = acl_users(hashes, deployment.existing)
    shown = re.sub(r"([#>])\S+", r"\1***", text)
    acl = account.home / "users.acl"
    # The file last that the next installation takes its hashes from: no password is ever known by its hash alone.
    return [*files, File(acl, text, 0o600, account.user, account.group, shown=shown, left=True)]


def _url(flags: ServerFlags, user: str, password: str) -> str:
    host = f"[{flags.hosts[0]}]" if ":" in flags.hosts[0] else flags.hosts[0]
    address = f"{user}:{password}@{host}:{flags.port}/0"
    return f"rediss://{address}?ssl_ca_certs={CA_FILE}" if flags.tls else f"redis://{address}"


def _certify(deployment: Deployment, flags: ServerFlags) -> list[PlanStep]:
    key = str(CERTIFICATES / "server.key")
    commands = (
        ("sh", str(MAKE_CERTIFICATES), str(CERTIFICATES), *flags.hosts),
        # The user alone: its group may have other members.
        ("chmod", "400", key),
        ("chown", deployment.account.user, key),
        ("cp", str(CERTIFICATES / "ca.crt"), str(CA_FILE)),
        ("chmod", "644", str(CA_FILE)),
    )
    return [PlanStep(command) for command in commands]


def _renewal(deployment: Deployment, flags: ServerFlags) -> Plan:
    """What looks at the certificate each week, and renews it in its last months."""
    command = ("/bin/sh", str(RENEW_CERTIFICATES), deployment.label, deployment.account.user, *flags.hosts)
    weekly = launchd.weekly if deployment.init == "launchd" else systemd.weekly
    return weekly(f"{deployment.label}-renewal", command)


def _notes(init: str, label: str, flags: ServerFlags) -> list[str]:
    notes = [f"URLs of the users, for root alone: {', '.join(str(ETC / f'{user}.url') for user in USERS)}"]
    if flags.tls:
        notes.append(
            f"copy {CA_FILE} and {ETC}/worker.url to each worker, for `promptmill deploy worker --ca ca.crt "
            "--redis-file worker.url`"
        )
        notes.append(
            f"the certificate ends in 820 days: {label}-renewal looks each week, and renews it in the last 90, as long "
            f"as {CERTIFICATES}/ca.key is there; clients stay as they are"
        )
    else:
        notes.append("without TLS everybody on the network can read passwords, prompts and texts")
    if init == "systemd":
        notes.append(
            "a server of the distribution on the same port: systemctl disable --now redis-server valkey-server"
        )
        return [*notes, f"log: journalctl -fu {label}"]
    notes.append("a server of Homebrew on the same port: brew services stop redis")
    return [*notes, f"log: {launchd.log_file(label)}"]


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
