"""What `promptmill deploy` writes for an example pool: the files to read in deploy/.

``python -m deploy.examples`` in the repository writes them anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from deploy.acl import RULES, users_acl
from deploy.deployment import Deployment
from deploy.init.service import INITS, Account, default_home
from deploy.plan import ETC, Plan
from deploy.pool import WorkerFlags, scheduler_plan, worker_plan
from deploy.server import ServerFlags, server_plan

__all__ = ["examples"]

_VENV = Path("/opt/promptmill/venv/bin/promptmill")
_SERVERS = {"launchd": Path("/opt/homebrew/bin/redis-server"), "systemd": Path("/usr/bin/redis-server")}
_FILES = {"launchd": Path("/Users/Shared/promptmill"), "systemd": Path("/srv/promptmill")}
_PUBLIC = (".plist", ".service", ".timer", ".conf", ".sh")


def examples() -> Mapping[str, str]:
    """Texts by path within deploy/; nothing secret is in them."""
    found = {"redis/users.acl": users_acl({name: f">{name.upper()}_PASSWORD" for name in RULES})}
    for init in INITS:
        for plan in _plans(init):
            found |= {_place(init, file.path): file.text for file in plan.files if file.path.suffix in _PUBLIC}
    return found


def _plans(init: str) -> list[Plan]:
    account = Account("promptmill", "promptmill", default_home(init, "home"))
    owner = Account("promptmill-redis", "promptmill-redis", default_home(init, "redis"))
    worker = Deployment(init, "promptmill-worker", account, _VENV, "rediss://worker@redis.local")
    scheduler = replace(worker, label="promptmill-scheduler")
    limit = 48 * 1024 if init == "launchd" else None
    flags = WorkerFlags(("mlx-community/Qwen3-4B-4bit",), account.home / "huggingface", wired_mib=limit)
    server = ServerFlags(("redis.local",), 8 * 2**30, token=lambda: "")
    return [
        worker_plan(worker, flags),
        scheduler_plan(scheduler, extra=("--read-from", str(_FILES[init]))),
        server_plan(Deployment(init, "promptmill-server", owner, _SERVERS[init]), server),
    ]


def _place(init: str, path: Path) -> str:
    if path.parent == ETC:
        # The systems differ in where data and logs are: the one of Linux is shown.
        return f"redis/{path.name}"
    return f"{init}/{path.parent.name}/{path.name}" if path.suffix == ".conf" else f"{init}/{path.name}"


if __name__ == "__main__":
    for name, text in examples().items():
        place = Path("deploy") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        click.echo(place)
