"""Workers that ``promptmill deploy worker`` set up on this machine.

They run as a user of their own. Whoever examines the machine as somebody else looks at other folders, another cache of
models and another Redis.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from deploy.doctor.finding import Finding, unsure
from deploy.doctor.mac import daemon_words, read_daemon
from deploy.host import Host
from deploy.init.launchd import DAEMONS
from deploy.init.systemd import UNITS
from deploy.plan import ETC

_KEPT = ("HOME", "HF_HOME", "PROMPTMILL_DATA_DIR")
"""Of a service's environment what says where its things are."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """A worker of this machine: its user, its ``promptmill``, its settings file and its models."""

    label: str
    user: str
    program: str
    config: str
    models: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def doctor(self) -> str:
        """The command that examines what this worker uses."""
        words = ["sudo", "-u", self.user, "env", *(f"{name}={value}" for name, value in self.environment.items())]
        words += [self.program, "--config", self.config, "doctor", "--worker"]
        for model in self.models:
            words += ["--model", model]
        return f"cd / && {shlex.join(words)}"


def find_deployed(host: Host) -> Iterator[Deployed]:
    """The workers of this machine, by their settings files, whose names everybody may read, and their services."""
    for settings in sorted(host.at(ETC).glob("*.toml")):
        label = settings.stem
        found = _launchd(host, label) or _systemd(host, label)
        if found is not None:
            yield found


def check_deployed(workers: Sequence[Deployed], user: str) -> Iterator[Finding]:
    """For each worker of another user's, that this looks past it, and how to look at it."""
    for worker in workers:
        if worker.user != user:
            reason = (
                f"{worker.label} runs here as user '{worker.user}', and this looks at the folders, the models and the "
                f"Redis of user '{user}'"
            )
            yield unsure("deployed worker", reason, "examine that worker by:", worker.doctor)


def _launchd(host: Host, label: str) -> Deployed | None:
    job = read_daemon(host.at(DAEMONS) / f"{label}.plist")
    variables = job.get("EnvironmentVariables")
    environment = variables if isinstance(variables, dict) else {}
    return _deployed(label, str(job.get("UserName", "")), daemon_words(job), environment)


def _systemd(host: Host, label: str) -> Deployed | None:
    pairs = [line.partition("=")[::2] for line in (host.read(UNITS / f"{label}.service") or "").splitlines()]
    said = dict(pairs)
    try:
        words = _words(said.get("ExecStart", ""))
        assigned = [word for name, value in pairs if name == "Environment" for word in _words(value)]
    except ValueError:  # damaged
        return None
    environment = {name: value for name, _, value in (word.partition("=") for word in assigned)}
    return _deployed(label, said.get("User", ""), words, environment)


def _words(text: str) -> list[str]:
    """The words of a unit's line; see :func:`deploy.init.systemd.quoted`."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(text)]


def _deployed(label: str, user: str, words: Sequence[str], environment: Mapping[str, object]) -> Deployed | None:
    """A service that is a worker of ours; whatever waits before it starts is left out."""
    if not user or "--config" not in words[1:-2]:
        return None
    place = list(words).index("--config", 1)
    program, config, command, *flags = (words[place - 1], *words[place + 1 :])
    if command != "worker":
        return None
    models = tuple(value for flag, value in pairwise(flags) if flag == "--model")
    kept = {name: str(environment[name]) for name in _KEPT if name in environment}
    return Deployed(label, user, program, config, models, kept)
