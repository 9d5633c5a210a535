"""`promptmill serve`: OpenAI's Files, Batches and completions over HTTP, for every tool that speaks them."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import click

from jobs.app.logs import set_up_logging
from jobs.app.process_name import process_name
from jobs.embedded.server import data_folder
from jobs.errors import RefusedError
from submit.commands.daemon_options import daemon_options
from submit.commands.options import Duration, open_store, redis_option

log = logging.getLogger("promptmill.serve")

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@*A-Z]+")


@click.command("serve", short_help="Serve OpenAI's API over HTTP: files, batches, completions.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8577, show_default=True, help="Port; 0 takes any.")
@click.option(
    "--model", "models", multiple=True, metavar="MODEL",
    help="Also start a worker for this model on this machine; may be given several times.",
)  # fmt: skip
@click.option(
    "--files", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Folder of the uploaded files; servers beside each other share it.  [default: in the user's data folder]",
)  # fmt: skip
@click.option(
    "--keys", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="File of the keys that are let in, made by `promptmill key add`. Without it only this machine is served.",
)  # fmt: skip
@click.option(
    "--tls-cert", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
    help="Certificate (PEM, with its chain): serve https.",
)  # fmt: skip
@click.option(
    "--tls-key", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
    help="The certificate's private key, where it is not in the same file.",
)  # fmt: skip
@click.option(
    "--cors-origin", multiple=True, metavar="ORIGIN",
    help="Let web pages of this origin, such as https://tools.example.com, call it; may be given several times.",
)  # fmt: skip
@click.option(
    "--strict-openai", is_flag=True,
    help="Write failed lines exactly as OpenAI does: without the error at the top of a line that has a response.",
)  # fmt: skip
@click.option(
    "--max-waiting", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True,
    help="Most requests that wait for an answer at once; others are told to come again.",
)  # fmt: skip
@click.option(
    "--request-timeout", type=Duration(), default="10m", show_default=True,
    help="A request is given up after so long.",
)  # fmt: skip
@click.option(
    "--drain", type=Duration(lifetime=False), default="30s", show_default=True,
    help="Requests that wait have so long to be answered when the server is stopped.",
)  # fmt: skip
@click.option(
    "--max-connections", type=click.IntRange(1, 100_000), default=4096, show_default=True,
    help="Most connections at once.",
)  # fmt: skip
@redis_option
@daemon_options
def command(
    host: str,
    port: int,
    models: tuple[str, ...],
    files: Path | None,
    keys: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    cors_origin: tuple[str, ...],
    strict_openai: bool,
    max_waiting: int,
    request_timeout: float,
    drain: float,
    max_connections: int,
    redis_url: str | None,
    log_format: str,
    log_file: Path | None,
    verbose: bool,
    check: bool,
) -> int:
    """Serve OpenAI's Files, Batches, Models and completions over HTTP, on the queues and workers of the pool.

    `promptmill serve --model MODEL` alone makes one Mac a batch server: it starts a Redis of its own and a worker. Any
    number of servers may stand beside each other behind a proxy, with one Redis and one folder of files.

    SIGTERM or Ctrl-C ends it with exit status 0: requests that wait are answered first. Where the worker of --model
    cannot run the server ends too, with the worker's exit status: 5 where it cannot load a model.
    """
    for package, name in (("starlette", "starlette"), ("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")):
        if importlib.util.find_spec(package) is None:
            raise RefusedError(f"serve needs {name}: pip install 'promptmill[serve]'")
    from serve.settings import Limits, ServeSettings

    if tls_key is not None and tls_cert is None:
        raise click.UsageError("--tls-key does nothing without --tls-cert: give that too, or neither.")
    limits = replace(
        Limits(), waiting=max_waiting, request_s=request_timeout, drain_s=drain, connections=max_connections
    )
    for origin in cors_origin:
        check_origin(origin, keys=keys is not None)
    folder = files or data_folder(os.environ) / "files"
    settings = ServeSettings(
        folder, host, port, keys, tls_cert, tls_key or tls_cert, cors_origin, strict_openai, models, limits
    )
    if keys is None and not settings.local:
        raise RefusedError(
            f"--host {host} lets other machines in, and there are no keys: make one with `promptmill key add NAME "
            "--keys FILE` and give --keys FILE, or leave --host out"
        )
    if models and importlib.util.find_spec("mlx_lm") is None:
        raise RefusedError(
            "--model needs MLX on this machine: pip install 'promptmill[worker]'; to have other machines do the work "
            "give --redis and no --model"
        )
    if check:
        return 0

    from serve.http.certificate import check_certificate
    from serve.server import run_server
    from serve.worker import WorkerBeside

    if settings.certificate is not None and settings.private_key is not None:
        check_certificate(settings.certificate, settings.private_key)
    set_up_logging(log_format, verbose=verbose, file=log_file, fields={"server": process_name(None)})
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(redis_url, patient=True, say=log.warning))
        url = redis_url or _embedded_url()
        worker = WorkerBeside(models, url, data_folder(os.environ), log.warning) if models else None
        if worker is not None:
            stack.enter_context(worker)
        status = run_server(
            store, settings, url, log.info, over=lambda: worker is not None and worker.failure is not None
        )
        if worker is not None and worker.failure is not None:
            raise worker.failure
        return status


def check_origin(origin: str, *, keys: bool) -> None:
    """See that browsers may name a page so.

    Raises:
        RefusedError: they never do, or it is everybody and there are no ``keys``.
    """
    if origin == "*" and keys:
        return
    if not _ORIGIN.fullmatch(origin):
        what = "lets all pages in, which takes --keys" if origin == "*" else "is no origin: write SCHEME://HOST[:PORT]"
        raise RefusedError(f"--cors-origin {origin} {what}")


def _embedded_url() -> str:
    """The URL of the embedded server, which runs."""
    from urllib.parse import quote

    from jobs.embedded.server import socket_path

    return f"unix://{quote(str(socket_path(data_folder(os.environ))))}"
