"""Random faults on a pool that is always at work: ``python -m tests.e2e.faults.storm``.

Batches are submitted all the time, dead workers are started again, and every few seconds something breaks; a batch is
audited when it is done. With ``--lines`` it is a soak instead: one large batch of short lines to its end.
The seed, printed first, makes the same choices again; what they meet depends on the machine. Exit status 1: something
was lost, doubled, stale or generated again without need.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson
from redis.exceptions import RedisError

from jobs.batch import PRIORITIES
from tests.e2e.faults.auditor import Event, audit, begun_since, events, in_flight
from tests.e2e.faults.pool import LEASE_S, QUICK_LEASE_S, UNSAVED_S, Pool, Submitted, Worker, job_lines

DRAIN_S = "10"
OUTAGE_S = 2.0
END_S = 300.0
LEFT_S = 90.0
HARMS = {"poison": "worker_crashed", "explode": "internal_error", "sick": "worker_crashed"}
"""What some lines do, and the code they fail with in the end."""
ATTEMPTS = 3


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Storm:
    """A pool, what is done to it, and what that may cost."""

    def __init__(self, pool: Pool, draw: random.Random, workers: int) -> None:
        self.pool = pool
        self.draw = draw
        self.faults: dict[str, int] = {}
        self.running = [self._start() for _ in range(workers)]
        self.harmful = 0
        self._lost: list[tuple[int, float]] = []
        self._server_kills: list[float] = []

    def _start(self) -> Worker:
        return self.pool.worker("--drain", DRAIN_S)

    def supervise(self) -> None:
        """Start dead workers again, as after somebody mended what they left word of."""
        for place, worker in enumerate(self.running):
            if not worker.alive:
                with contextlib.suppress(RedisError):
                    for key in self.pool.store.connection.scan_iter("promptmill:trouble:*"):
                        self.pool.store.connection.delete(key)
                self.running[place] = self._start()

    def strike(self) -> None:
        """One fault, drawn."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.kill, 5), (self.term, 3), (self.freeze, 3), (self.cut, 3), (self.restart, 2), (self.outage, 1),
            (self.pause, 2),
        ]  # fmt: skip
        (fault,) = self.draw.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        self._count(fault.__name__)
        fault()

    def kill(self) -> None:
        """SIGKILL a worker."""
        self._costs(victim := self.draw.choice(self.running))
        victim.signal(signal.SIGKILL)

    def term(self) -> None:
        """SIGTERM a worker."""
        self.draw.choice(self.running).signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP a worker for some seconds, shorter or longer than its leases."""
        victim, seconds = self.draw.choice(self.running), self.draw.uniform(0.5, 2.5) * self.pool.lease
        if seconds > 0.8 * self.pool.lease:  # else its leases live on
            self._costs(victim)
        victim.signal(signal.SIGSTOP)
        threading.Timer(seconds, victim.signal, [signal.SIGCONT]).start()

    def cut(self) -> None:
        """Close all connections."""
        with self.pool.server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def restart(self) -> None:
        """Kill the server and start it on the same folder."""
        self.pool.server.kill()
        self._server_kills.append(time.monotonic())
        self.pool.server.start()

    def outage(self) -> None:
        """The server is away for a moment."""
        self.pool.server.kill()
        self._server_kills.append(time.monotonic())
        time.sleep(OUTAGE_S)
        self.pool.server.start()

    def pause(self) -> None:
        """The whole pool is paused for a moment."""
        self._held()

    @property
    def crashes(self) -> int:
        """Deaths and freezes so far, but for those that lines bring about."""
        return len(self._lost)

    def _costs(self, victim: Worker) -> None:
        self._lost.append((victim.pid, time.monotonic()))

    def allowed(self, seen: list[Event]) -> int:
        """Lines that may have been generated again: those in flight at the faults that lose them, and those begun so
        shortly before the server was killed that it may not have known of them any more, and further attempts."""
        forgotten = sum(begun_since(seen, at - UNSAVED_S, at) for at in self._server_kills)
        deaths = [(event.pid, event.at) for event in seen if event.phase in ("poison", "sick")]
        lost = sum(in_flight(seen, pid, at) for pid, at in self._lost + deaths)
        return forgotten + lost + (ATTEMPTS - 1) * self.harmful

    def end(self) -> None:
        """Let all that is frozen go on."""
        for worker in self.running:
            worker.signal(signal.SIGCONT)

    def submit(self) -> Submitted:
        """A batch of some size, now and then with a line that does harm, or cancelled, paused for a while, or given
        another priority, at once or soon."""
        lines = job_lines(self.draw.randint(1, 400), max_tokens=self.draw.randint(3, 40))
        if self.draw.random() < 0.2:
            line, harm = self.draw.choice(lines), self.draw.choice(list(HARMS))
            line["prompt"] = f"{harm} {line['id']}"
            self.harmful += 1
        batch = self.pool.submit(lines)
        if self.draw.random() < 0.1:
            threading.Timer(self.draw.uniform(0.0, 3.0), self._cancel, [batch]).start()
        if self.draw.random() < 0.15:
            threading.Timer(self.draw.uniform(0.0, 3.0), self._held, [batch]).start()
        if self.draw.random() < 0.15:
            priority = self.draw.choice(PRIORITIES)
            threading.Timer(self.draw.uniform(0.0, 3.0), self._moved, [batch, priority]).start()
        return batch

    def _moved(self, batch: Submitted, priority: str) -> None:
        if self.pool.command("priority", batch.id, priority, check=False).returncode == 0:
            self._count("priority")

    def _held(self, *batches: Submitted) -> None:
        """Pause batches, or without any the pool, for some seconds; whatever befalls the server, they go on."""
        names = [batch.id for batch in batches]
        if self.pool.command("pause", *names, check=False).returncode == 2:  # it is over
            return
        if names:
            self._count("pause of a batch")
        threading.Timer(self.draw.uniform(0.5, 4.0), self._released, [names]).start()

    def _released(self, names: list[str]) -> None:
        while self.pool.command("resume", *names, check=False).returncode == 3:  # the server is away
            time.sleep(1.0)

    def _count(self, what: str) -> None:
        self.faults[what] = self.faults.get(what, 0) + 1

    def _cancel(self, batch: Submitted) -> None:
        if self.pool.command("cancel", batch.id, check=False).returncode == 0:
            self._count("cancel")

    def check(self, batch: Submitted) -> tuple[list[str], int]:
        """Audit a batch that is done: what is wrong, and the lines that were generated again."""
        out, errors = self.pool.results(batch)
        source, seen, status = self.pool.write(batch.lines), events(self.pool.log), self.pool.status(batch)
        harms = {line["id"]: HARMS[harm] for line in batch.lines if (harm := line["prompt"].partition(" ")[0]) in HARMS}
        cancelled = status["status"] == "cancelled"
        found = audit(
            source, batch.lines, out, errors, status, seen, batch=batch.id,
            codes={name: {code, "worker_crashed"} for name, code in harms.items()},
            end_status="cancelled" if cancelled else "completed", any_may="cancelled" if cancelled else None,
        )  # fmt: skip
        return found.wrong, found.regenerated


def storm(pool: Pool, draw: random.Random, *, minutes: float, workers: int, every: float) -> list[str]:
    """Batches and faults for some minutes; what was wrong."""
    weather = Storm(pool, draw, workers)
    open_batches: list[Submitted] = []
    wrong, again, done = [], 0, 0
    begun = time.monotonic()
    struck = begun
    while (now := time.monotonic()) < begun + minutes * 60 or (open_batches and now < begun + minutes * 60 + END_S):
        weather.supervise()
        calm = now >= begun + minutes * 60
        if not calm and len(open_batches) < workers + 1:
            open_batches.append(weather.submit())
        if not calm and now - struck > every:
            struck = now
            weather.strike()
        for batch in [batch for batch in open_batches if pool.done(batch)]:
            open_batches.remove(batch)
            found, regenerated = weather.check(batch)
            wrong += [f"{batch.id}: {text}" for text in found]
            again, done = again + regenerated, done + 1
        time.sleep(0.1)
    weather.end()
    wrong += [f"{batch.id} never ended" for batch in open_batches]
    allowed = weather.allowed(events(pool.log))
    if again > allowed:
        wrong.append(f"{again} lines were generated again, at most {allowed} were in flight at the faults")
    say(f"{done} batches, faults {weather.faults}, {again} lines generated again, at most {allowed}")
    return wrong


def soak(pool: Pool, draw: random.Random, *, lines: int, workers: int, every: float) -> list[str]:
    """One large batch with a fault every few seconds; what was wrong."""
    weather = Storm(pool, draw, workers)
    pool.ready(*weather.running)
    begun = time.monotonic()
    batch = pool.submit(job_lines(lines, max_tokens=4))
    submitted = struck = time.monotonic()
    while not pool.done(batch) and time.monotonic() < begun + END_S + lines / 50:
        weather.supervise()
        if time.monotonic() - struck > every:
            struck = time.monotonic()
            weather.strike()
        time.sleep(0.1)
    seconds = time.monotonic() - submitted
    weather.end()
    if not pool.done(batch):
        return [f"{batch.id} never ended: {pool.status(batch)['request_counts']}"]
    wrong, again = weather.check(batch)
    allowed = weather.allowed(events(pool.log))
    if again > allowed:
        wrong.append(f"{again} lines were generated again, at most {allowed} were in flight at the faults")
    say(f"{lines} lines in {seconds:.0f} s ({lines / seconds:.0f}/s), faults {weather.faults}")
    rows = f"{pool.rows} rows x {weather.crashes} crashes = {pool.rows * weather.crashes}"
    say(f"{again} lines generated again; {rows}, {allowed} with those whose records were on the way")
    return wrong


def settled(pool: Pool) -> list[str]:
    """What is left in RQ's books when there was time to clear them."""
    try:
        pool.settled(LEFT_S)
    except AssertionError:
        return [f"left in Redis: {key}" for key in pool.leftovers()]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two faults")
    parser.add_argument("--lines", type=int, help="soak: one batch of so many lines")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--step-ms", type=float, default=2.0)
    parser.add_argument("--lease", type=int, default=QUICK_LEASE_S, help=f"seconds; {LEASE_S} in production")
    parser.add_argument("--keep", type=Path, help="folder for the files and logs, made anew")
    flags = parser.parse_args()
    say(f"seed {flags.seed}")
    draw = random.Random(flags.seed)
    with tempfile.TemporaryDirectory(prefix="pm-storm-") as scratch:
        folder = flags.keep or Path(scratch)
        folder.mkdir(exist_ok=True, parents=True)
        with Pool(folder, lease=flags.lease, rows=flags.rows, step_ms=flags.step_ms) as pool:
            shared = {"workers": flags.workers, "every": flags.every}
            if flags.lines:
                wrong = soak(pool, draw, lines=flags.lines, **shared)
            else:
                wrong = storm(pool, draw, minutes=flags.minutes, **shared)
            wrong += settled(pool)
    for text in wrong[:50]:
        say(text)
    say(orjson.dumps({"seed": flags.seed, "wrong": len(wrong)}).decode())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
