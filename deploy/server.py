"""The Redis of a pool, as a daemon: configuration, users, certificates."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.certificates import RENEWAL, SCRIPT
from deploy.init import launchd, systemd
from deploy.init.service import Account, Service, root_group
from deploy.plan import ETC, File, Folder, Plan, Step
from deploy.pool import CA_FILE, service_files
from deploy.redis_conf import RULES, Network, acl_users, kept_hashes, redis_conf
from jobs.errors import RefusedError

__all__ = ["CERTIFICATES", "CONFIG", "RENEWAL_FILE", "SCRIPT_FILE", "USERS", "ServerFlags", "server_plan"]

CONFIG = ETC / "redis.conf"
CERTIFICATES = ETC / "tls"
SCRIPT_FILE = ETC / "make-certs.sh"
RENEWAL_FILE = ETC / "renew-certs.sh"
STOP_S = 120
"""Seconds to write what is not yet on the disk."""
LEAST_MEMORY = 64 * 2**20
USERS = ("operator", *RULES)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_BIND = re.compile(r"-?(\*|::\*|[0-9A-Fa-f.:]+|[A-Za-z0-9][A-Za-z0-9.-]*)")


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """A server: ``hosts`` are its names in URLs, the first that of the URLs that are written; ``existing`` is the text
    of the ACL file that is there, whose passwords stay but with ``new_passwords``."""

    hosts: tuple[str, ...]
    maxmemory: int
    port: int = 6379
    bind: tuple[str, ...] = ("*", "-::*")
    tls: bool = True
    existing: str | None = None
    new_passwords: bool = False
    token: Callable[[], str] = lambda: secrets.token_hex(32)


def server_plan(
    init: str, label: str, account: Account, program: Path, flags: ServerFlags, users: tuple[Step, ...]
) -> Plan:
    """The daemon of a server, its configuration and users, and URLs for those who are to reach it.

    Raises:
        RefusedError: something does not fit.
    """
    _check(flags)
    root = root_group(init)
    network = Network(flags.port, flags.bind, CERTIFICATES if flags.tls else None)
    acl = account.home / "users.acl"
    service = Service(
        label=label,
        about="Redis of a promptmill pool",
        command=(str(program), str(CONFIG)),
        account=account,
        environment={"HOME": str(account.home)},
        stop_s=STOP_S,
        foreground=True,  # every machine of the pool waits for it
    )
    folders, service_own, start = service_files(init, service)
    log = launchd.log_file(label) if init == "launchd" else None
    conf = redis_conf(network, maxmemory=flags.maxmemory, folder=account.home, acl=acl, log=log)
    files = [File(CONFIG, conf, 0o644, "root", root), *_accounts(flags, acl, account, root)]
    steps: list[Step] = []
    if flags.tls:
        folders += (Folder(CERTIFICATES, 0o755, "root", root),)
        files.append(File(SCRIPT_FILE, SCRIPT, 0o755, "root", root))
        files.append(File(RENEWAL_FILE, RENEWAL, 0o755, "root", root))
        steps += _certify(flags.hosts, account)
        command = ("/bin/sh", str(RENEWAL_FILE), label, account.user, *flags.hosts)
        weekly, watch = (launchd if init == "launchd" else systemd).weekly(f"{label}-renewal", command)
        service_own += weekly
        start = (*start, *watch)
    if init == "systemd":
        # A server that rewrites its file is copied for a moment: without this the kernel may refuse it.
        sysctl = Path("/etc/sysctl.d") / f"60-{label}.conf"
        files.append(File(sysctl, "vm.overcommit_memory = 1\n", 0o644, "root", root))
        steps.append(Step(("sysctl", "-q", "-p", str(sysctl)), may_fail=True))
    left = [f"{account.home} (data, users)", f"user {account.user}", f"{ETC}/*.url (passwords)"]
    if init == "systemd":
        left.append("vm.overcommit_memory = 1, until this machine starts anew (0 is Linux's own)")
    return Plan(
        label=label,
        init=init,
        folders=folders,
        files=(*files, *service_own),
        users=users,
        start=(*steps, *start),
        left=(*left, *((f"{CERTIFICATES} and {CA_FILE}",) if flags.tls else ())),
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


def _accounts(flags: ServerFlags, acl: Path, account: Account, root: str) -> list[File]:
    """The ACL file, and for each password that is new a URL, for root alone."""
    files: list[File] = []
    hashes = {} if flags.new_passwords else kept_hashes(flags.existing)
    for user in USERS:
        if user in hashes:
            continue
        password = flags.token()
        hashes[user] = hashlib.sha256(password.encode()).hexdigest()
        url = f"{_url(flags, user, password)}\n"
        files.append(File(ETC / f"{user}.url", url, 0o600, "root", root, shown=url.replace(password, "***"), left=True))
    text = acl_users(hashes, flags.existing)
    shown = re.sub(r"([#>])\S+", r"\1***", text)
    # The file last that the next installation takes its hashes from: no password is ever known by its hash alone.
    return [*files, File(acl, text, 0o600, account.user, account.group, shown=shown, left=True)]


def _url(flags: ServerFlags, user: str, password: str) -> str:
    host = f"[{flags.hosts[0]}]" if ":" in flags.hosts[0] else flags.hosts[0]
    address = f"{user}:{password}@{host}:{flags.port}/0"
    return f"rediss://{address}?ssl_ca_certs={CA_FILE}" if flags.tls else f"redis://{address}"


def _certify(hosts: Sequence[str], account: Account) -> list[Step]:
    key = str(CERTIFICATES / "server.key")
    return [
        Step(("sh", str(SCRIPT_FILE), str(CERTIFICATES), *hosts)),
        # The user alone: its group may have other members.
        Step(("chmod", "400", key)),
        Step(("chown", account.user, key)),
        Step(("cp", str(CERTIFICATES / "ca.crt"), str(CA_FILE))),
        Step(("chmod", "644", str(CA_FILE))),
    ]


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
    else:
        notes.append("a server of Homebrew on the same port: brew services stop redis")
    notes.append(f"log: {'journalctl -fu ' + label if init == 'systemd' else launchd.log_file(label)}")
    return notes
