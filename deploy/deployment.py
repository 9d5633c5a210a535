"""What a daemon of any kind is deployed with, and the parts that all of them have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from deploy.init import launchd, systemd
from deploy.init.service import Account, ServiceSpec, default_home
from deploy.plan import ETC, Folder, PlanStep, Unit, root_group

__all__ = ["CA_FILE", "Deployment", "unit_of"]

CA_FILE = ETC / "ca.crt"


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


def unit_of(init: str, service: ServiceSpec) -> Unit:
    """The unit of a service on either system, with the folders that it needs."""
    unit = launchd.unit(service) if init == "launchd" else systemd.unit(service)
    account, root = service.account, root_group(init)
    folders = [Folder(ETC, 0o755, "root", root)]
    usual = default_home(init, "x").parent
    if account.home.parent == usual:
        folders.append(Folder(usual, 0o755, "root", root))
    # The user's alone: its group may have other members.
    folders += [Folder(path, 0o700, account.user, account.group) for path in (account.home, *service.writable)]
    return replace(unit, folders=(*folders, *unit.folders))
