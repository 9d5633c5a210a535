"""What `promptmill deploy` writes for an example pool: the files to read in deploy/.

``python -m tests.deploy_examples`` in the repository writes them anew.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click

from submit.cli import main

DEPLOY = Path(__file__).parents[1] / "deploy"
_POOL = ["--redis", "rediss://worker@redis.local", "--program", "/opt/promptmill/venv/bin/promptmill"]
_WORKER = ["worker", "--model", "mlx-community/Qwen3-4B-4bit", *_POOL]
_SERVER = ["server", "--host", "redis.local", "--maxmemory", "8G", "--program"]
_COMMANDS = {
    "launchd": [
        [*_WORKER, "--wired-limit", "48G"],
        ["scheduler", *_POOL, "--", "--read-from", "/Users/Shared/promptmill"],
        [*_SERVER, "/opt/homebrew/bin/redis-server"],
    ],
    "systemd": [
        _WORKER,
        ["scheduler", *_POOL, "--", "--read-from", "/srv/promptmill"],
        [*_SERVER, "/usr/bin/redis-server"],
    ],
}
_PUBLIC = (".plist", ".service", ".timer", ".conf", ".sh")


def examples() -> Mapping[str, str]:
    """Texts by path within deploy/; nothing secret is in them."""
    found = {}
    for init, commands in _COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for kind, *flags in commands:
                assert main(["deploy", kind, "--init", init, "--root", folder, "--install", *flags]) == 0
            files = [path for path in root.rglob("*") if path.suffix in _PUBLIC]
            found |= {_place(init, path.relative_to(root)): path.read_text(encoding="utf-8") for path in files}
            (users,) = root.rglob("users.acl")
            found["redis/users.acl"] = _with_named_passwords(users.read_text(encoding="utf-8"))
    return found


def _place(init: str, path: Path) -> str:
    if path.parent == Path("etc/promptmill"):
        # The systems differ in where data and logs are: the one of Linux is shown.
        return f"redis/{path.name}"
    return f"{init}/{path.parent.name}/{path.name}" if path.suffix == ".conf" else f"{init}/{path.name}"


def _with_named_passwords(acl: str) -> str:
    """The users of a pool without their passwords, nor the operator, whom each server has its own way to name."""
    lines = [line for line in acl.splitlines(keepends=True) if not line.startswith("user operator ")]
    return re.sub(r"(user (\w+) on) #\w+", lambda found: f"{found[1]} >{found[2].upper()}_PASSWORD", "".join(lines))


if __name__ == "__main__":
    for name, text in examples().items():
        place = DEPLOY / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        click.echo(place)
