"""The daemons of either system: launchd's of macOS, systemd's of Linux."""

from dataclasses import replace

from deploy.init import launchd, systemd
from deploy.init.service import ServiceSpec, default_home
from deploy.plan import ETC, Folder, Plan, root_group

__all__ = ["service_plan"]


def service_plan(service: ServiceSpec) -> Plan:
    """The unit of a service on either system, with its user and the folders that it needs."""
    deployment = service.deployment
    unit = launchd.unit(service) if deployment.init == "launchd" else systemd.unit(service)
    account, root = deployment.account, root_group(deployment.init)
    folders = [Folder(ETC, 0o755, "root", root)]
    usual = default_home(deployment.init, "x").parent
    if account.home.parent == usual:
        folders.append(Folder(usual, 0o755, "root", root))
    # The user's alone: its group may have other members.
    folders += [Folder(path, 0o700, account.user, account.group) for path in (account.home, *service.writable)]
    return replace(unit, folders=(*folders, *unit.folders), users=deployment.users)
