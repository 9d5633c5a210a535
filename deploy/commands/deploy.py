"""``promptmill deploy``: daemons of a pool, on macOS (launchd) and Linux (systemd)."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from deploy.init.service import INITS, Account, default_home, default_init
from jobs.app.units import parse_size
from jobs.errors import RefusedError

if TYPE_CHECKING:
    from deploy.host import Host
    from deploy.plan import Plan, Step
    from deploy.pool import Common

F = TypeVar("F", bound=Callable[..., Any])
_SERVERS = ("redis-server", "valkey-server")
_SERVER_FOLDERS = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin")


class Size(click.ParamType[int]):
    """Bytes: ``48G``, ``512MB``, or a plain number; ``auto`` where that makes sense."""

    name = "size"

    def __init__(self, *, auto: bool = False) -> None:
        self.auto = auto

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int) or (self.auto and value == "auto"):
            return value
        try:
            return parse_size(str(value))
        except RefusedError as error:
            self.fail(str(error), param, ctx)


def _machine_options(label: str, user: str) -> Callable[[F], F]:
    """Options that all three have: what is done, where, and as whom."""
    options = [
        click.option("--dry-run", is_flag=True, help="Show all files and commands, change nothing.  [default]"),
        click.option("--install", is_flag=True, help="Do it, or bring what is installed up to date. Needs root."),
        click.option(
            "--uninstall", is_flag=True, help="Remove what --install wrote, leave data; with --dry-run only show that."
        ),
        click.option(
            "--init", type=click.Choice(INITS), help="What starts daemons.  [default: launchd on macOS, else systemd]"
        ),
        click.option(
            "--root", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
            help="Install into this folder as if it were /: no root needed, none of the commands is run.",
        ),
        click.option("--label", default=label, show_default=True, help="Name of the daemon and of its files."),
        click.option(
            "--user", default=user, show_default=True, help="User it runs as, made when missing; no administrator."
        ),
        click.option(
            "--home", type=click.Path(path_type=Path), metavar="DIR",
            help="That user's folder for all it keeps.  "
            f"[default: {default_home('launchd', 'NAME')} or {default_home('systemd', 'NAME')}]".replace(
                "NAME", "redis" if label.endswith("server") else "home"
            ),
        ),
    ]  # fmt: skip
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


program_option = click.option(
    "--program", type=click.Path(path_type=Path), metavar="PATH",
    help="The promptmill that the daemon runs.  [default: the one you are running]",
)  # fmt: skip
redis_option = click.option(
    "--redis", "redis_url", metavar="URL", envvar=["PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"],
    help="Redis of the pool (redis://, rediss://).  [default: that of the installation before]",
)  # fmt: skip
redis_file_option = click.option(
    "--redis-file", type=click.File("r", encoding="utf-8"), metavar="FILE",
    help="File with the URL of the pool's Redis, - for standard input: everybody can read command lines.",
)  # fmt: skip
authority_option = click.option(
    "--ca", "authority", type=click.File("r", encoding="utf-8"), metavar="FILE",
    help="Certificate of the authority that signed the server's: copied, and named in the URL.",
)  # fmt: skip


@click.group("deploy", short_help="Daemons of a pool: workers, the scheduler, the Redis server.")
def command() -> None:
    """Set up the daemons of a pool, on macOS (launchd) and Linux (systemd).

    Without an action each shows what it would do. Passwords are in files that only their user can read; nothing shows
    them. deploy/README.md sets up a whole pool, step by step.
    """


@command.command("worker", short_help="A worker that starts with the machine.")
@click.option(
    "--model", "models", multiple=True, metavar="MODEL",
    help="Model to serve: an absolute path, or a Hugging Face repository. May be given several times.",
)  # fmt: skip
@click.option("--name", help="Name of the worker.  [default: the host's]")
@click.option(
    "--drain", type=click.FloatRange(0, 3000), default=30.0, show_default=True, metavar="SECONDS",
    help="Time to finish lines already begun when it is stopped; it is killed 30 seconds later.",
)  # fmt: skip
@click.option(
    "--hf-home", type=click.Path(path_type=Path), metavar="DIR",
    help="Where the models of the Hugging Face Hub are kept.  [default: huggingface in --home]",
)  # fmt: skip
@click.option(
    "--wired-limit", type=Size(auto=True), metavar="SIZE|auto",
    help="Let the GPU use so much memory, set anew at each boot (macOS); auto leaves the system an eighth, at least 8G."
    "  [default: macOS decides]",
)  # fmt: skip
@click.option("--no-start", is_flag=True, help="Install without starting, to fetch models first; then install again.")
@click.option("--power", is_flag=True, help="Also set the power settings of a Mac that never sleeps.")
@redis_option
@redis_file_option
@authority_option
@program_option
@_machine_options("promptmill-worker", "promptmill")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER FLAGS]")
def worker(
    models: tuple[str, ...], hf_home: Path | None, wired_limit: Any, extra: tuple[str, ...], **flags: Any
) -> int:
    """A worker that starts with the machine, and again after a failure.

    \b
      promptmill deploy worker --model mlx-community/Qwen3-4B-4bit --redis-file worker.url --ca ca.crt
      sudo promptmill deploy worker ... --install
      sudo promptmill deploy worker --uninstall

    What follows `--` goes to `promptmill worker` (see its --help), such as `-- --autotune --memory-limit 40G`.
    --install again, with other flags or after an upgrade, drains the worker and starts it anew.
    """
    from deploy.pool import WorkerFlags, worker_plan, worker_words

    def plan(common: Common, host: Host) -> Plan:
        if not models:
            raise RefusedError("--model is missing: name each model that this worker is to serve")
        kept = _absolute(hf_home, "--hf-home") if hf_home is not None else common.account.home / "huggingface"
        wired = None if wired_limit is None else _wired(wired_limit, host)
        own = WorkerFlags(models, kept, flags["name"], flags["drain"], wired, flags["power"], extra)
        made = worker_plan(common, own)
        _check_models(models, common, host, flags)
        _check_flags(worker_words(own), common, host, flags)
        return made.not_started() if flags["no_start"] else made

    return _pool_daemon(flags, plan)


@command.command("scheduler", short_help="The scheduler of a pool, on one machine of it.")
@click.option(
    "--webhook-secret-file", "secret_file", type=click.File("r", encoding="utf-8"), metavar="FILE",
    help="File with the secret that webhooks are signed with, - for standard input.  "
    "[default: that of the installation before]",
)  # fmt: skip
@redis_option
@redis_file_option
@authority_option
@program_option
@_machine_options("promptmill-scheduler", "promptmill")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- SCHEDULER FLAGS]")
def scheduler(secret_file: Any, extra: tuple[str, ...], **flags: Any) -> int:
    """The daemon that submits scheduled batches and sends webhooks. One machine of the pool is enough.

    \b
      promptmill deploy scheduler --redis-file worker.url --ca ca.crt
      sudo promptmill deploy scheduler ... --webhook-secret-file webhook.secret --install
      sudo promptmill deploy scheduler ... --install -- --read-from /srv/promptmill

    What follows `--` goes to `promptmill scheduler` (see its --help), such as `-- --webhook-hosts '*.example.com'`.
    """
    from deploy.pool import scheduler_plan

    def plan(common: Common, host: Host) -> Plan:
        made = scheduler_plan(common, secret, extra)
        _check_folders(extra, common, host, flags)
        _check_flags(("scheduler", *extra), common, host, flags)
        return made

    secret = _secret(secret_file, flags)
    return _pool_daemon(flags, plan)


@command.command("server", short_help="The Redis of a pool.")
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST",
    help="Name or address under which the pool reaches it; may be given several times. The first stands in URLs, all "
    "in the certificate.",
)  # fmt: skip
@click.option("--maxmemory", type=Size(), metavar="SIZE", help="Memory for batches and their results, such as 8G.")
@click.option("--port", type=click.IntRange(1, 65535), default=6379, show_default=True)
@click.option(
    "--bind", multiple=True, default=("*", "-::*"), show_default=True, metavar="ADDRESS", help="Addresses to listen on."
)
@click.option("--tls/--no-tls", default=True, show_default=True, help="Encrypt, with certificates made here.")
@click.option("--new-passwords", is_flag=True, help="Give all users new passwords; those there are kept otherwise.")
@click.option(
    "--program", type=click.Path(path_type=Path), metavar="PATH",
    help=f"The server.  [default: {' or '.join(_SERVERS)}, where the system has it]",
)  # fmt: skip
@_machine_options("promptmill-server", "promptmill-redis")
def server(hosts: tuple[str, ...], maxmemory: int | None, bind: tuple[str, ...], **flags: Any) -> int:
    """The Redis (6.2 or later) or Valkey of a pool: append-only file, no eviction, users of least privilege, TLS.

    \b
      promptmill deploy server --host redis.local --maxmemory 8G
      sudo promptmill deploy server --host redis.local --maxmemory 8G --install

    Installs no server: `brew install redis` or `apt install redis-server` does. Each user's URL, with its password, is
    written to /etc/promptmill/USER.url for root alone. --install again keeps the passwords and renews the certificate.
    """
    from deploy.checks import memory_problem
    from deploy.server import ServerFlags, server_plan

    def plan(init: str, account: Account, host: Host, users: tuple[Step, ...]) -> Plan:
        if not hosts:
            raise RefusedError("--host is missing: give the name under which the pool reaches this server")
        if maxmemory is None:
            raise RefusedError("--maxmemory is missing: say how much memory batches may take, such as 8G")
        program = flags["program"] or _server_program(init)
        _check_reach(program, account, host, flags)
        if problem := memory_problem(maxmemory, host.memory()):
            click.echo(f"warning: {problem}", err=True)
        existing = host.read(account.home / "users.acl")
        own = ServerFlags(hosts, maxmemory, flags["port"], bind, flags["tls"], existing, flags["new_passwords"])
        return server_plan(init, flags["label"], account, program, own, users)

    return _daemon(flags, "redis", plan)


def _pool_daemon(flags: dict[str, Any], plan: Callable[[Common, Host], Plan]) -> int:
    """Deploy what runs promptmill itself."""

    def whole(init: str, account: Account, host: Host, users: tuple[Step, ...]) -> Plan:
        from deploy.plan import ETC
        from deploy.pool import Common

        program = flags["program"] or Path(sys.executable).with_name("promptmill")
        _check_reach(program, account, host, flags)
        url = _url(flags)
        if url is None and not host.exists(ETC / f"{flags['label']}.toml"):
            raise RefusedError("no Redis of a pool: name it with --redis-file, PROMPTMILL_REDIS_URL or --redis")
        settings = ETC / f"{flags['label']}.toml"
        existing = host.read(settings)
        if flags["install"] and existing is None and host.is_root and host.exists(settings):
            raise RefusedError(f"{host.at(settings)} cannot be read as text: remove it, and give --redis-file again")
        common = Common(init, flags["label"], account, program, url, _authority(flags), users, existing)
        return plan(common, host)

    return _daemon(flags, "home", whole)


def _daemon(flags: dict[str, Any], home: str, make: Callable[[str, Account, Host, tuple[Step, ...]], Plan]) -> int:
    """What all do: check, plan, and the action that was asked for."""
    from deploy.checks import check_label, check_user
    from deploy.host import Host
    from deploy.install import install, removal, show, uninstall

    if flags["install"] and (flags["dry_run"] or flags["uninstall"]):
        raise RefusedError("--install excludes --dry-run and --uninstall: give one of them")
    host, label, user = Host(flags["root"]), check_label(flags["label"]), check_user(flags["user"])
    if flags["uninstall"] and flags["dry_run"]:
        click.echo("\n".join(removal(label, host)))
        return 0
    if flags["uninstall"]:
        uninstall(label, host, click.echo)
        return 0
    init = flags["init"] or default_init()
    own = _absolute(flags["home"], "--home") if flags["home"] else default_home(init, home)
    account = Account(user, host.group_of(user) or user, own)
    if host.root is None and (host.is_admin(user) or host.uid_of(user) == 0):
        raise RefusedError(f"--user {user} administers this machine: give the daemon a user of its own")
    plan = make(init, account, host, _user_steps(init, account, host))
    if flags["install"]:
        install(plan, host, click.echo)
    else:
        click.echo("\n".join(show(plan)))
    return 0


def _user_steps(init: str, account: Account, host: Host) -> tuple[Step, ...]:
    from deploy.init import launchd, systemd

    if host.uid_of(account.user) is not None:
        return ()
    gid = host.gid_of(account.group)
    if init == "systemd":
        return systemd.user_steps(account, with_group=gid is None or host.platform == "darwin")
    if host.platform != "darwin":
        return launchd.user_steps(account, None)
    return launchd.user_steps(account, host.free_id(), gid)


def _check_reach(program: Path, account: Account, host: Host, flags: dict[str, Any]) -> None:
    """The program is there and the daemon's user may run it. What is only shown, or written into a folder, may be for
    another machine: then it is a warning."""
    from deploy.checks import check_program, reach_problem

    check_program(program)
    _object(reach_problem(program, host.uid_of(account.user), host.groups_of(account.user), account.user), host, flags)


def _object(problem: str | None, host: Host, flags: dict[str, Any]) -> None:
    """Refuse to install here what cannot work here; where it is only shown, or for another machine, warn."""
    if problem is not None and flags["install"] and host.root is None:
        raise RefusedError(problem)
    if problem is not None:
        click.echo(f"warning: {problem}", err=True)


def _check_models(models: tuple[str, ...], common: Common, host: Host, flags: dict[str, Any]) -> None:
    """The folders of models are there, and open to the daemon's user."""
    from deploy.checks import model_problem

    user = common.account.user
    for model in models:
        _object(model_problem(model, host.uid_of(user), host.groups_of(user), user), host, flags)


def _check_flags(words: tuple[str, ...], common: Common, host: Host, flags: dict[str, Any]) -> None:
    """The program takes these flags: else the daemon would end at each start, unseen. It is asked itself.

    Raises:
        RefusedError: with what it says.
    """
    from deploy.checks import flags_problem, owned_by_another
    from deploy.pool import settings_place, trial

    if not common.program.exists():
        return  # that has been said
    if host.is_root and owned_by_another(common.program):
        click.echo(
            f"warning: flags are not checked: {common.program} is not root's, and root does not run it", err=True
        )
        return
    settings = None if common.existing is None else host.at(settings_place(common))
    done = host.ask(trial(common, words, settings))
    if done.status == 0:
        return
    said = flags_problem(done.status, done.output)
    if said is not None:
        raise RefusedError(f"the {words[0]} would not start: {said} (see `promptmill {words[0]} --help`)")
    why = " ".join(done.output.splitlines()[-1:]) or f"it ended with status {done.status}"
    _object(f"{common.program} cannot check the {words[0]}'s flags: {why}", host, flags)


def _check_folders(extra: tuple[str, ...], common: Common, host: Host, flags: dict[str, Any]) -> None:
    """The scheduler may read where it is told to: else it would end at each start, or find no file."""
    from deploy.checks import folder_problem
    from deploy.pool import read_folders

    user = common.account.user
    for folder in read_folders(extra):
        problem = folder_problem(folder, host.uid_of(user), host.groups_of(user), user)
        _object(None if problem is None else f"--read-from {problem}", host, flags)


def _secret(file: Any, flags: dict[str, Any]) -> str | None:
    """The secret of webhooks, checked; one or several, on one line or more."""
    if file is None:
        return None
    from submit.webhooks.signature import Signer

    other = flags["redis_file"]
    if other is not None and getattr(other, "name", "-") == getattr(file, "name", "-"):
        raise RefusedError("--redis-file and --webhook-secret-file are the same: only one can be standard input")
    text = " ".join(_read(file, "--webhook-secret-file").split())
    try:
        Signer(text)
    except RefusedError as error:
        raise RefusedError(f"--webhook-secret-file: {error}") from None
    return text


def _url(flags: dict[str, Any]) -> str | None:
    from deploy.checks import check_url

    given: str | None = flags["redis_url"]
    if flags["redis_file"] is not None:
        if click.get_current_context().get_parameter_source("redis_url") is ParameterSource.COMMANDLINE:
            raise RefusedError("--redis and --redis-file both name the pool's Redis: give one of them")
        given = _read(flags["redis_file"], "--redis-file").strip()
    return None if given is None else check_url(given)


def _authority(flags: dict[str, Any]) -> str | None:
    if flags["authority"] is None:
        return None
    text = _read(flags["authority"], "--ca")
    if "-----BEGIN CERTIFICATE-----" not in text or "PRIVATE KEY" in text:
        raise RefusedError("--ca is not a certificate in PEM: give the authority's ca.crt, and never its key")
    return text


def _read(file: Any, flag: str) -> str:
    try:
        text: str = file.read(100_000)
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{flag} cannot be read: {error}") from None
    return text


def _absolute(path: Path, flag: str) -> Path:
    from deploy.checks import check_program

    return check_program(path, flag)


def _wired(size: Any, host: Host) -> int:
    """The limit in MiB; ``auto`` by the memory of this machine. One that only takes away is remarked upon."""
    from deploy.checks import low_limit, wired_limit

    memory = host.memory() if host.platform == "darwin" else None
    limit = wired_limit(None if size == "auto" else size, memory)
    if memory is not None and (problem := low_limit(limit, memory)):
        click.echo(f"warning: {problem}", err=True)
    return limit


def _server_program(init: str) -> Path:
    for name in _SERVERS:
        for folder in _SERVER_FOLDERS:
            if (Path(folder) / name).exists():
                return Path(folder) / name
        if found := shutil.which(name):
            return Path(found)
    return Path("/opt/homebrew/bin/redis-server" if init == "launchd" else "/usr/bin/redis-server")
