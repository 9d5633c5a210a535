"""The server of `promptmill deploy server`, run from the files that it installs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError

from submit.cli import main
from tests.servers import free_port
from tests.waiting import until

MEMORY = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Installed:
    """A server from its files alone, in a folder that stands for its machine."""

    root: Path

    def url(self, user: str) -> str:
        text = (self.root / f"etc/promptmill/{user}.url").read_text().strip()
        return text.replace("=/etc/", f"={self.root}/etc/")


@contextmanager
def installed(root: Path, program: str, *flags: str) -> Iterator[Installed]:
    """Install into a folder, make the certificates as the installation would, and run what is there."""
    root.mkdir()
    home = root / "var/lib/promptmill/redis"
    arguments = ["--init", "systemd", "--program", program, "--maxmemory", str(MEMORY), "--port", str(free_port())]
    arguments += ["--host", "127.0.0.1", "--host", "redis.local", "--bind", "127.0.0.1", *flags]
    assert main(["deploy", "server", *arguments, "--root", str(root), "--install"]) == 0
    etc = root / "etc/promptmill"
    if (etc / "make-certs.sh").exists():
        subprocess.run(["sh", etc / "make-certs.sh", etc / "tls", "127.0.0.1", "redis.local"], check=True, timeout=60)
        shutil.copy(etc / "tls/ca.crt", etc / "ca.crt")
    conf = etc / "redis.conf"
    conf.write_text(conf.read_text().replace('"/', f'"{root}/'))
    made = Installed(root)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([program, str(conf)], cwd=home, stdout=log, stderr=log)
        try:
            until(lambda: answers(made, process, home / "log"), "the server answers", seconds=20)
            yield made
        finally:
            process.terminate()
            assert process.wait(20) == 0


def answers(made: Installed, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with Redis.from_url(made.url("operator")) as operator:
            return bool(operator.ping())
    except ConnectionError:
        return False
