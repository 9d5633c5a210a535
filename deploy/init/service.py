"""What is deployed: a long-lived process of a pool, described alike for launchd and systemd."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.plan import ETC, PlanStep

INITS = ("launchd", "systemd")
CA_FILE = ETC / "ca.crt"
SERVERS = ("redis-server", "valkey-server")
_HOMES = {"launchd": Path("/opt/promptmill"), "systemd": Path("/var/lib/promptmill")}


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group that a service runs as, and the user's home."""

    user: str
    group: str
    home: Path


@dataclass(frozen=True, slots=True)
class Deployment:
    """What every deployment says. ``url`` None keeps that of the settings file, ``authority`` is the text of the
    certificate that the pool's server is known by, and ``users`` are the commands that make the user.

    ``existing`` is the text of the file of before whose secrets are kept, where it is there and for us to read: the
    settings file, or the ACL file of a server.
    """

    init: str
    label: str
    account: Account
    program: Path
    url: str | None = None
    authority: str | None = None
    users: tuple[PlanStep, ...] = ()
    existing: str | None = None

    @property
    def settings(self) -> Path:
        """The settings file of what runs promptmill itself."""
        return ETC / f"{self.label}.toml"

    @property
    def promptmill(self) -> tuple[str, ...]:
        """The command line up to the name of a command."""
        return str(self.program), "--config", str(self.settings)


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What is run of a deployment, and with what environment.

    ``stop_s`` is how long it may take to end after SIGTERM, ``writable`` the folders that it writes to besides the
    user's home, and ``foreground`` whether it needs the whole machine: launchd slows the GPU of other jobs.
    ``confined`` says that it neither compiles nor loads foreign code nor uses a device, so that systemd may forbid it;
    ``reads_homes`` that it reads what people have in theirs, as far as they let it.
    """

    deployment: Deployment
    about: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    stop_s: int
    writable: tuple[Path, ...] = ()
    foreground: bool = False
    confined: bool = True
    reads_homes: bool = False


def default_init(platform: str = sys.platform) -> str:
    return "launchd" if platform == "darwin" else "systemd"


def default_home(init: str, name: str) -> Path:
    """Where a service's user is at home: ``name`` is ``home`` for workers, ``redis`` for the server."""
    return _HOMES[init] / name
