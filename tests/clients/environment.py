"""What a client needs: an environment with its packages, a checkout of its suite, a server to talk to."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.clients.client import Client, Place, Suite
from tests.servers import running_server
from tests.serving import serving
from tests.waiting import until

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "examples" / "pocket" / "model"


def interpreter(client: Client, folder: Path) -> Path:
    """An interpreter that has the client's packages, and nothing of ours. It is kept for the next time."""
    if not client.packages:
        return Path(sys.executable)
    home = folder / "envs" / client.name
    python, noted = home / "bin" / "python", home / "packages.txt"
    wanted = "\n".join((sys.version, *client.packages))
    if noted.exists() and noted.read_text() == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(home)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *client.packages], check=True)
    else:
        venv.create(home, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *client.packages], check=True)
    noted.write_text(wanted)
    return python


def checkout(suite: Suite | None, suites: Path) -> Path:
    """The folder of a suite: one that is there is taken as it is, else it is cloned at its revision."""
    if suite is None:
        return suites
    home = suites / suite.name
    if not home.exists():
        suites.mkdir(parents=True, exist_ok=True)
        git = ["git", "-C", str(home)]
        clone = ["git", "clone", "--quiet", "--filter=blob:none", "--no-checkout", suite.url, str(home)]
        for command in (
            clone,
            [*git, "sparse-checkout", "set", "--no-cone", *suite.paths],
            [*git, "checkout", "--quiet", suite.revision],
        ):
            subprocess.run(command, check=True)
    return home


@contextlib.contextmanager
def place(client: Client, folder: Path, suites: Path) -> Iterator[Place]:
    """A server, a worker for the pocket model under the client's names of it, and an empty folder."""
    python, suite = interpreter(client, folder), checkout(client.suite, suites)
    work = folder / "work" / client.name
    shutil.rmtree(work, ignore_errors=True)
    for name in ("models", "files", "own"):
        (work / name).mkdir(parents=True)
    keys = work / "keys.json"
    subprocess.run(
        [sys.executable, "-m", "promptmill", "key", "add", "client", "--keys", str(keys), "--from-stdin"],
        input=client.key, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    with (
        running_server() as redis_url,
        _worker(client, redis_url, work),
        serving(redis_url, work / "files", "--keys", str(keys), *client.flags, port=client.port) as server,
    ):
        headers = {"Authorization": f"Bearer {client.key}"}
        until(
            lambda: len(httpx.get(f"{server.url}/models", headers=headers).json()["data"]) == len(client.models),
            "the worker serves its models",
        )
        yield Place(server.url, client.key, client.models, python, work / "own", suite)


@contextlib.contextmanager
def _worker(client: Client, redis_url: str, work: Path) -> Iterator[None]:
    """A real worker: a model that is a folder is named by its path, here one below the worker's own folder."""
    for name in client.models:
        model = work / "models" / name
        model.parent.mkdir(parents=True, exist_ok=True)
        model.symlink_to(POCKET, target_is_directory=True)
    environ = {**os.environ, "PROMPTMILL_REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "worker", *(f"--model={name}" for name in client.models)]
    with (
        (work / "worker.log").open("w") as log,
        subprocess.Popen(command, env=environ, cwd=work / "models", stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)
