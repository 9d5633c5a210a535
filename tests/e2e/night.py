"""A night of a pool on one machine, in minutes: ``python -m tests.e2e.night --minutes 15 --folder DIR``.

The server that ``promptmill deploy server`` sets up, with its users and TLS; three workers with two models between
them; a scheduler with a batch each minute; batches of three priorities all the time; a worker killed, one paused; a
Prometheus that scrapes the workers, and a receiver of webhooks that verifies their signatures. At the end every batch
is audited. Exit status 1: something was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from standardwebhooks import Webhook

from submit import Client
from tests.deployed import Installed, installed
from tests.servers import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "examples" / "pocket" / "model"
PRIORITIES = ("high", "normal", "low")
OPEN = {"high": 1, "normal": 2, "low": 1}
"""Batches of each priority that are kept under way."""
DEADLINE_S = 240.0
WORKERS = {"alpha": ("one",), "beta": ("two",), "gamma": ("one", "two")}


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks and verifies them with the scheme's own library; the first try of each batch is turned away."""

    daemon_threads = True

    def __init__(self, secret: str) -> None:
        self.scheme = Webhook(secret)
        self.told: dict[str, str] = {}
        self.turned_away: set[str] = set()
        self.wrong: list[str] = []
        super().__init__(("127.0.0.1", 0), Told)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/promptmill"


class Told(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            event = self.server.scheme.verify(body, dict(self.headers.items()))
        except Exception as error:
            self.server.wrong.append(f"a webhook that cannot be verified: {error!r}")
            return self.send_error(400)
        batch = event["data"]["id"]
        if batch not in self.server.turned_away:
            self.server.turned_away.add(batch)
            return self.send_error(503)
        # A scheduler that was killed after the answer delivers it again, as the same message.
        known = self.server.told.setdefault(batch, self.headers["webhook-id"])
        if known != self.headers["webhook-id"] or event["type"] != "batch.completed":
            self.server.wrong.append(f"the end of {batch} was delivered as another message, or as {event['type']}")
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Night:
    """A pool of real processes under ``folder``."""

    def __init__(self, folder: Path, server: Installed, draw: random.Random) -> None:
        self.folder, self.server, self.draw = folder, server, draw
        self.secret = "whsec_" + b64encode(secrets.token_bytes(24)).decode()
        self.receiver = Receiver(self.secret)
        self.ports = {name: free_port() for name in WORKERS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.submitted: dict[str, list[str]] = {}
        self.models = {}
        for name in ("one", "two"):
            self.models[name] = str(shutil.copytree(POCKET, folder / "models" / name))

    # --- processes ---

    def start(self, name: str, *arguments: str, user: str | None = None, **environ: str) -> None:
        url = {} if user is None else {"PROMPTMILL_REDIS_URL": self.server.url(user)}
        data = str(self.folder / "data")
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                arguments, stdout=log, stderr=log, env={**os.environ, "PROMPTMILL_DATA_DIR": data, **url, **environ}
            )

    def start_worker(self, name: str) -> None:
        models = [word for model in WORKERS[name] for word in ("--model", self.models[model])]
        self.start(
            name, sys.executable, "-P", "-m", "worker", "--name", name, *models, "--decode-concurrency", "8",
            "--metrics-port", str(self.ports[name]), "--log-format", "json", user="worker",
        )  # fmt: skip

    def start_all(self) -> None:
        for name in WORKERS:
            self.start_worker(name)
        for name in ("scheduler", "standby"):
            self.start(
                name, sys.executable, "-P", "-m", "submit.cli", "scheduler", "--webhook-hosts", "127.0.0.1",
                user="worker", PROMPTMILL_WEBHOOK_SECRET=self.secret,
            )  # fmt: skip
        targets = [f"127.0.0.1:{port}" for port in self.ports.values()]
        config = {
            "global": {"scrape_interval": "5s"},
            "scrape_configs": [{"job_name": "promptmill", "static_configs": [{"targets": targets}]}],
        }
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        self.prometheus = free_port()
        self.start(
            "prometheus", "prometheus", f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/prometheus", f"--web.listen-address=127.0.0.1:{self.prometheus}",
        )  # fmt: skip

    def stop_all(self) -> list[str]:
        """Ask all to stop; those that did not end in peace."""
        for process in self.processes.values():
            process.terminate()
        ended = {name: process.wait(60) for name, process in self.processes.items()}
        return [f"{name} ended with {status}" for name, status in ended.items() if status]

    def command(self, *arguments: str, user: str = "submitter") -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "PROMPTMILL_REDIS_URL": self.server.url(user)}
        command = [sys.executable, "-P", "-m", "submit.cli", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DEADLINE_S)

    def json(self, *arguments: str) -> Any:
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return orjson.loads(done.stdout)

    # --- what a night is made of ---

    def lines(self, count: int, tokens: int) -> Path:
        path = self.folder / f"in-{secrets.token_hex(4)}.jsonl"
        jobs = (
            {
                "id": f"row-{number}",
                "prompt": "Once upon a time there was a fox. " * self.draw.randint(1, 12) + str(number),
                "max_tokens": self.draw.randint(4, tokens),
                "temperature": round(self.draw.random(), 2),
            }
            for number in range(count)
        )
        path.write_bytes(b"".join(orjson.dumps(job) + b"\n" for job in jobs))
        return path

    def schedule(self) -> None:
        done = self.command(
            "schedule", "add", "each-minute", "--cron", "* * * * *", "--tz", "Europe/Berlin", "--model",
            self.models["two"], "--webhook", self.receiver.url, "--keep", "2h", str(self.lines(20, 40)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def submit(self, priority: str) -> None:
        size = {"high": 20, "normal": 300, "low": 300}[priority]
        model = self.models[self.draw.choice(["one", "two"])]
        path = self.lines(self.draw.randint(size // 2, size), 160)
        done = self.command("submit", str(path), "--model", model, "--priority", priority, "--name", f"{priority} work",
                            "--webhook", self.receiver.url)  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.submitted.setdefault(priority, []).append(done.stdout.strip())

    def supervise(self) -> None:
        """As launchd does: a worker that died is started again."""
        for name in WORKERS:
            if self.processes[name].poll() is not None:
                self.start_worker(name)

    def work(self, minutes: float) -> None:
        begun = time.monotonic()
        events: list[tuple[float, str, Callable[[], object]]] = [
            (0.3, "killed worker beta", lambda: self.processes["beta"].send_signal(signal.SIGKILL)),
            (0.5, "paused worker alpha", lambda: self.command("pause", "--worker", "alpha")),
            (0.6, "resumed worker alpha", lambda: self.command("resume", "--worker", "alpha")),
            (0.7, "killed the scheduler", lambda: self.processes["scheduler"].send_signal(signal.SIGKILL)),
        ]
        while (passed := (time.monotonic() - begun) / (minutes * 60)) < 1:
            if events and passed > events[0][0]:
                _, what, act = events.pop(0)
                act()
                say(what)
            self.supervise()
            under_way = [batch["id"] for batch in self.json("status") if batch["status"] == "in_progress"]
            for priority in PRIORITIES:
                mine = set(self.submitted.get(priority, [])).intersection(under_way)
                if len(mine) < OPEN[priority] and passed < 0.93:
                    self.submit(priority)
            time.sleep(1.0)

    # --- what is looked at in the end ---

    def check(self, minutes: float) -> list[str]:
        wrong = list(self.receiver.wrong)
        until(
            lambda: all(batch["status"] == "completed" for batch in self.json("status")),
            "all is done",
            seconds=DEADLINE_S,
        )
        batches = self.json("status")
        for batch in batches:
            wrong += self.audit(batch)
        told = {batch["id"] for batch in batches if batch["webhook"]}
        until(lambda: told <= self.receiver.told.keys(), "all webhooks came", seconds=DEADLINE_S)
        nightly = [batch for batch in batches if batch["schedule"] == "each-minute"]
        if abs(len(nightly) - minutes) > 2:
            wrong.append(f"{len(nightly)} runs of the schedule in {minutes} minutes")
        began = sorted(batch["created_at"][:16] for batch in nightly)
        if len(set(began)) != len(began):
            wrong.append(f"a run of the schedule was doubled: {began}")
        lines = sum(batch["request_counts"]["total"] for batch in batches)
        say(f"{len(batches)} batches, {lines} lines, {len(nightly)} of them by the schedule; "
            f"{len(self.receiver.told)} webhooks verified")  # fmt: skip
        return wrong + self.check_priorities(batches) + self.check_tools()

    def audit(self, batch: dict[str, Any]) -> list[str]:
        with Client(self.server.url("submitter")) as client:
            records = list(client.batch(batch["id"]).results())
        if [record["index"] for record in records] != list(range(batch["request_counts"]["total"])):
            return [f"{batch['id']}: {len(records)} records of {batch['request_counts']}"]
        return []

    def check_priorities(self, batches: list[dict[str, Any]]) -> list[str]:
        """How long batches waited for their first line, by priority."""
        for priority in PRIORITIES:
            mine = [batch for batch in batches if batch["id"] in self.submitted.get(priority, [])]
            waits = sorted(moment(batch["started_at"]) - moment(batch["in_progress_at"]) for batch in mine)
            say(f"{priority}: {len(waits)} batches began after {waits[len(waits) // 2]:.1f} s (median), "
                f"{waits[-1]:.1f} s (longest)")  # fmt: skip
        return []

    def check_tools(self) -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus}/api/v1/targets") as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        say("Prometheus: " + ", ".join(f"{target['labels']['instance']} {target['health']}" for target in targets))
        unhealthy = [f"target {target['scrapeUrl']} is {target['health']}" for target in targets
                     if target["health"] != "up"]  # fmt: skip
        info = subprocess.run([Path(sys.executable).with_name("rq"), "info", "--url", self.server.url("worker")],
                              capture_output=True, text=True, check=True).stdout  # fmt: skip
        say(f"rq info:\n{info}")
        names = {worker["name"] for worker in self.json("workers")}
        missing = [f"rq info does not know {name}" for name in names if name not in info]
        return unhealthy + missing + ([] if len(names) == len(WORKERS) else [f"workers: {names}"])


def moment(text: str) -> float:
    return time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) + float(text[19:-1])


@contextlib.contextmanager
def pool(folder: Path, draw: random.Random) -> Iterator[Night]:
    program = shutil.which("redis-server")
    assert program is not None
    with installed(folder / "root", program, "--maxmemory", "1G") as server:
        night = Night(folder, server, draw)
        try:
            yield night
        finally:
            for process in night.processes.values():
                process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="for the files and logs; made anew")
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True)
    with pool(flags.folder, random.Random(flags.seed)) as night:
        (flags.folder / "url").write_text(night.server.url("submitter"))
        (flags.folder / "worker-url").write_text(night.server.url("worker"))
        night.start_all()
        night.schedule()
        night.work(flags.minutes)
        night.command("schedule", "remove", "each-minute")
        wrong = night.check(flags.minutes)
        killed = night.processes.pop("scheduler")
        wrong += [] if killed.poll() == -signal.SIGKILL else ["the scheduler was not killed"]
        wrong += night.stop_all()
    for text in wrong:
        say(text)
    say("nothing was wrong" if not wrong else f"{len(wrong)} things were wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
