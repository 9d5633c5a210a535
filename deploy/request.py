"""What was asked of `promptmill deploy`, held against this machine, and carried out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from deploy.checks import (
    check_label,
    check_program,
    check_redis_url,
    check_user,
    flags_problem,
    owned_by_another,
    reach_problem,
)
from deploy.gpu_limit import low_limit, wired_limit
from deploy.host import Host, printed
from deploy.init import launchd, systemd
from deploy.init.service import SERVERS, Account, Deployment, default_home, default_init
from deploy.install import install, removal, show, uninstall
from deploy.plan import Plan, PlanStep
from deploy.pool import trial
from jobs.errors import RefusedError
from submit.webhooks.signature import Signer

_SERVER_FOLDERS = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin")


class Request:
    """The flags of a command of `promptmill deploy`, and the machine that they are for.

    Raises:
        RefusedError: flags that exclude each other, or a name that is none; so do all methods, where the machine is
            against it.
    """

    def __init__(self, flags: Mapping[str, Any]) -> None:
        if flags["install"] and (flags["dry_run"] or flags["uninstall"]):
            raise RefusedError("--install excludes --dry-run and --uninstall: give one of them")
        self._flags = flags
        self._label = check_label(flags["label"])
        self.host = Host(flags["root"])
        self.user = self.host.user(check_user(flags["user"]))
        self._init: str = flags["init"] or default_init()

    def uninstalled(self) -> bool:
        """Uninstall, or show what that would do, if that was asked for."""
        if self._flags["uninstall"] and self._flags["dry_run"]:
            click.echo("\n".join(removal(self._label, self.host)))
        elif self._flags["uninstall"]:
            uninstall(self._label, self.host, click.echo)
        return bool(self._flags["uninstall"])

    def carry_out(self, plan: Plan) -> int:
        """Install, or show what that would do; the command's exit status."""
        if self._flags["install"]:
            install(plan, self.host, click.echo)
        else:
            click.echo("\n".join(show(plan)))
        return 0

    def of_server(self) -> Deployment:
        """The deployment of a server, with the users that it has already."""
        made = self._deployment("redis", _server_program(self._init))
        return replace(made, existing=self.host.read(made.account.home / "users.acl"))

    def of_pool(self) -> Deployment:
        """The deployment of what runs promptmill itself, with the settings that it has already."""
        made = self._deployment("home", Path(sys.executable).with_name("promptmill"))
        url, settings = self._url(), made.settings
        there, existing = self.host.exists(settings), self.host.read(settings)
        if url is None and not there:
            raise RefusedError("no Redis of a pool: name it with --redis-file, PROMPTMILL_REDIS_URL or --redis")
        if self._flags["install"] and existing is None and self.host.is_root and there:
            place = self.host.at(settings)
            raise RefusedError(f"{place} cannot be read as text: remove it, and give --redis-file again")
        return replace(made, url=url, authority=self._authority(), existing=existing)

    def _deployment(self, home: str, program: Path) -> Deployment:
        """What all daemons have. Unless flags say so ``home`` names the user's folder, and ``program`` is what runs."""
        given, user = self._flags["home"], self.user
        folder = check_program(given, "--home") if given else default_home(self._init, home)
        if self.host.root is None and (self.host.is_admin(user) or user.uid == 0):
            raise RefusedError(f"--user {user.name} administers this machine: give the daemon a user of its own")
        account = Account(user.name, user.group or user.name, folder)
        program = check_program(self._flags["program"] or program)
        self.object_to(reach_problem(program, user))
        return Deployment(self._init, self._label, account, program, users=self._user_steps(account))

    def _user_steps(self, account: Account) -> tuple[PlanStep, ...]:
        """Commands that make the daemon's user where it is missing."""
        if self.user.uid is not None:
            return ()
        gid, on_mac = self.host.gid_of(account.group), self.host.platform == "darwin"
        if self._init == "systemd":
            return systemd.user_steps(account, with_group=gid is None or on_mac)
        return launchd.user_steps(account, self.host.free_id() if on_mac else None, gid if on_mac else None)

    def warn(self, problem: str | None) -> None:
        if problem is not None:
            click.echo(f"warning: {problem}", err=True)

    def object_to(self, problem: str | None) -> None:
        """Refuse to install here what cannot work here. What is only shown, or written into a folder, may be for
        another machine: then it is a warning."""
        if problem is not None and self._flags["install"] and self.host.root is None:
            raise RefusedError(problem)
        self.warn(problem)

    def check_flags(self, deployment: Deployment, words: tuple[str, ...]) -> None:
        """The program takes these flags: else the daemon would end at each start, unseen. It is asked itself.

        Raises:
            RefusedError: with what it says.
        """
        program = deployment.program
        if not program.exists():
            return  # that has been said
        if self.host.is_root and owned_by_another(program):
            self.warn(f"flags are not checked: {program} is not root's, and root does not run it")
            return
        settings = None if deployment.existing is None else self.host.at(deployment.settings)
        done = self.host.ask(trial(deployment, words, settings))
        if done.returncode == 0:
            return
        said = flags_problem(done.returncode, printed(done))
        if said is not None:
            raise RefusedError(f"`promptmill {words[0]}` would not start: {said} (see `promptmill {words[0]} --help`)")
        why = " ".join(printed(done).splitlines()[-1:]) or f"it ended with status {done.returncode}"
        self.object_to(f"{program} cannot check the {words[0]}'s flags: {why}")

    def wired_limit(self) -> int | None:
        """The limit in MiB that was asked for; ``auto`` by the memory of this machine. One that only takes away is
        remarked upon."""
        size = self._flags["wired_limit"]
        if size is None:
            return None
        memory = self.host.memory() if self.host.platform == "darwin" else None
        limit = wired_limit(None if size == "auto" else size, memory)
        self.warn(None if memory is None else low_limit(limit, memory))
        return limit

    def webhook_secret(self) -> str | None:
        """The secret of webhooks, checked; one or several, on one line or more."""
        file, other = self._flags["secret_file"], self._flags["redis_file"]
        if file is None:
            return None
        if other is not None and getattr(other, "name", "-") == getattr(file, "name", "-"):
            raise RefusedError("--redis-file and --webhook-secret-file are the same: only one can be standard input")
        text = " ".join(_read(file, "--webhook-secret-file").split())
        try:
            Signer(text)
        except RefusedError as error:
            raise RefusedError(f"--webhook-secret-file: {error}") from None
        return text

    def _url(self) -> str | None:
        given: str | None = self._flags["redis_url"]
        if self._flags["redis_file"] is not None:
            if click.get_current_context().get_parameter_source("redis_url") is ParameterSource.COMMANDLINE:
                raise RefusedError("--redis and --redis-file both name the pool's Redis: give one of them")
            given = _read(self._flags["redis_file"], "--redis-file").strip()
        return None if given is None else check_redis_url(given)

    def _authority(self) -> str | None:
        if self._flags["authority"] is None:
            return None
        text = _read(self._flags["authority"], "--ca")
        if "-----BEGIN CERTIFICATE-----" not in text or "PRIVATE KEY" in text:
            raise RefusedError("--ca is not a certificate in PEM: give the authority's ca.crt, and never its key")
        return text


def _read(file: Any, flag: str) -> str:
    try:
        text: str = file.read(100_000)
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{flag} cannot be read: {error}") from None
    return text


def _server_program(init: str) -> Path:
    """The first server that this machine has, else where its system puts one."""
    places = os.pathsep.join((*_SERVER_FOLDERS, os.environ.get("PATH", "")))
    for name in SERVERS:
        if found := shutil.which(name, path=places):
            return Path(found)
    return Path("/opt/homebrew/bin/redis-server" if init == "launchd" else "/usr/bin/redis-server")
