"""``promptmill deploy``: daemons of a pool, on macOS (launchd) and Linux (systemd)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deploy.checks import check_program, folder_problem, memory_problem, model_problem
from deploy.init.service import INITS, SERVERS, default_home
from deploy.pool import WorkerFlags, read_folders, scheduler_plan, serve_plan, serve_words, worker_plan, worker_words
from deploy.request import Request
from deploy.server import ServerFlags, server_plan
from jobs.app.units import parse_size
from jobs.errors import RefusedError
from submit.commands.options import in_this_order


def _size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except RefusedError as error:
        raise click.BadParameter(str(error)) from None


def _size_or_auto(ctx: click.Context, param: click.Parameter, text: str | None) -> int | str | None:
    return text if text == "auto" else _size(ctx, param, text)


def _machine_options(label: str, user: str) -> Callable[[Any], Any]:
    """Options that all three have: what is done, where, and as whom."""
    home = "redis" if label.endswith("server") else "home"
    return in_this_order(
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
            f"[default: {default_home('launchd', home)} or {default_home('systemd', home)}]",
        ),
    )  # fmt: skip


pool_options = in_this_order(
    click.option(
        "--redis", "redis_url", metavar="URL", envvar=["PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"],
        help="Redis of the pool (redis://, rediss://).  [default: that of the installation before]",
    ),
    click.option(
        "--redis-file", type=click.File("r", encoding="utf-8"), metavar="FILE",
        help="File with the URL of the pool's Redis, - for standard input: everybody can read command lines.",
    ),
    click.option(
        "--ca", "authority", type=click.File("r", encoding="utf-8"), metavar="FILE",
        help="Certificate of the authority that signed the server's: copied, and named in the URL.",
    ),
    click.option(
        "--program", type=click.Path(path_type=Path), metavar="PATH",
        help="The promptmill that the daemon runs.  [default: the one you are running]",
    ),
)  # fmt: skip


@click.group("deploy", short_help="Daemons of a pool: workers, the scheduler, the HTTP and Redis servers.")
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
    "--wired-limit", callback=_size_or_auto, metavar="SIZE|auto",
    help="Let the GPU use so much memory, set anew at each boot (macOS); auto leaves the system an eighth, at least 8G."
    "  [default: macOS decides]",
)  # fmt: skip
@click.option("--no-start", is_flag=True, help="Install without starting, to fetch models first; then install again.")
@click.option("--power", is_flag=True, help="Also set the power settings of a Mac that never sleeps.")
@pool_options
@_machine_options("promptmill-worker", "promptmill")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER FLAGS]")
def worker(**flags: Any) -> int:
    """A worker that starts with the machine, and again after a failure.

    \b
      promptmill deploy worker --model mlx-community/Qwen3-4B-4bit --redis-file worker.url --ca ca.crt
      sudo promptmill deploy worker ... --install
      sudo promptmill deploy worker --uninstall

    What follows `--` goes to `promptmill worker` (see its --help), such as `-- --autotune --memory-limit 40G`.
    --install again, with other flags or after an upgrade, drains the worker and starts it anew.
    """
    request = Request(flags)
    if request.uninstalled():
        return 0
    deployment, models, kept = request.of_pool(), flags["models"], flags["hf_home"]
    if not models:
        raise RefusedError("--model is missing: name each model that this worker is to serve")
    kept = deployment.account.home / "huggingface" if kept is None else check_program(kept, "--hf-home")
    own = WorkerFlags(
        models, kept, flags["name"], flags["drain"], request.wired_limit(), flags["power"], flags["extra"]
    )
    plan = worker_plan(deployment, own)
    for model in models:
        request.object_to(model_problem(model, request.user))
    request.check_flags(deployment, worker_words(own))
    return request.carry_out(plan.not_started() if flags["no_start"] else plan)


@command.command("scheduler", short_help="The scheduler of a pool, on one machine of it.")
@click.option(
    "--webhook-secret-file", "secret_file", type=click.File("r", encoding="utf-8"), metavar="FILE",
    help="File with the secret that webhooks are signed with, - for standard input.  "
    "[default: that of the installation before]",
)  # fmt: skip
@pool_options
@_machine_options("promptmill-scheduler", "promptmill")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- SCHEDULER FLAGS]")
def scheduler(**flags: Any) -> int:
    """The daemon that submits scheduled batches and sends webhooks. One machine of the pool is enough.

    \b
      promptmill deploy scheduler --redis-file worker.url --ca ca.crt
      sudo promptmill deploy scheduler ... --webhook-secret-file webhook.secret --install
      sudo promptmill deploy scheduler ... --install -- --read-from /srv/promptmill

    What follows `--` goes to `promptmill scheduler` (see its --help), such as `-- --webhook-hosts '*.example.com'`.
    """
    request, extra = Request(flags), flags["extra"]
    secret = request.webhook_secret()
    if request.uninstalled():
        return 0
    deployment = request.of_pool()
    plan = scheduler_plan(deployment, secret, extra)
    for folder in read_folders(extra):
        request.object_to(folder_problem(folder, request.user))
    request.check_flags(deployment, ("scheduler", *extra))
    return request.carry_out(plan)


@command.command("serve", short_help="The HTTP server of a pool: OpenAI's files, batches and completions.")
@click.option(
    "--files", type=click.Path(path_type=Path), metavar="DIR",
    help="Folder of the uploaded files.  [default: files in --home]",
)  # fmt: skip
@pool_options
@_machine_options("promptmill-serve", "promptmill")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE FLAGS]")
def serve(**flags: Any) -> int:
    """The daemon that serves OpenAI's API over HTTP. One machine of the pool is enough; several share --files.

    \b
      promptmill deploy serve --redis-file worker.url --ca ca.crt
      sudo promptmill deploy serve ... --install -- --host 0.0.0.0 --keys /etc/promptmill/keys.json

    What follows `--` goes to `promptmill serve` (see its --help). The daemon's user must be able to read the files of
    keys and certificates that it names.
    """
    request = Request(flags)
    if request.uninstalled():
        return 0
    deployment, files = request.of_pool(), flags["files"]
    files = deployment.account.home / "files" if files is None else check_program(files, "--files")
    plan = serve_plan(deployment, files, flags["extra"])
    request.check_flags(deployment, serve_words(files, flags["extra"]))
    return request.carry_out(plan)


@command.command("server", short_help="The Redis of a pool.")
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST",
    help="Name or address under which the pool reaches it; may be given several times. The first stands in URLs, all "
    "in the certificate.",
)  # fmt: skip
@click.option("--maxmemory", callback=_size, metavar="SIZE", help="Memory for batches and their results, such as 8G.")
@click.option("--port", type=click.IntRange(1, 65535), default=6379, show_default=True)
@click.option(
    "--bind", multiple=True, default=("*", "-::*"), show_default=True, metavar="ADDRESS", help="Addresses to listen on."
)
@click.option("--tls/--no-tls", default=True, show_default=True, help="Encrypt, with certificates made here.")
@click.option("--new-passwords", is_flag=True, help="Give all users new passwords; those there are kept otherwise.")
@click.option(
    "--program", type=click.Path(path_type=Path), metavar="PATH",
    help=f"The server.  [default: {' or '.join(SERVERS)}, where the system has it]",
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
    request = Request(flags)
    if request.uninstalled():
        return 0
    if not hosts:
        raise RefusedError("--host is missing: give the name under which the pool reaches this server")
    if maxmemory is None:
        raise RefusedError("--maxmemory is missing: say how much memory batches may take, such as 8G")
    deployment = request.of_server()
    request.warn(memory_problem(maxmemory, request.host.memory()))
    own = ServerFlags(hosts, maxmemory, flags["port"], bind, flags["tls"], flags["new_passwords"])
    return request.carry_out(server_plan(deployment, own))
