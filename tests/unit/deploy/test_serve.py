"""`promptmill deploy serve`: the daemon of an HTTP server."""

from __future__ import annotations

import pytest

from tests.commands import promptmill

DEPLOY = ("deploy", "serve", "--redis", "redis://localhost:6379", "--init", "systemd")


def test_an_http_server_is_deployed() -> None:
    """With its files at home, or where it is said, which it may write to."""
    shown = promptmill(*DEPLOY, "--", "--port", "8080").stdout
    assert "serve --files /var/lib/promptmill/home/files --port 8080" in shown
    elsewhere = promptmill(*DEPLOY, "--files", "/srv/x").stdout
    assert "ReadWritePaths=/srv/x" in elsewhere


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "a/b"], "deploy worker"),
        (["--files=x"], "`promptmill deploy serve` itself"),
        (["--check"], "ends at once"),
        (["--bogus"], "No such option"),
        (["--host", "0.0.0.0"], "promptmill key add"),
    ],
)
def test_what_a_daemon_is_not_for_is_refused(flags: list[str], said: str) -> None:
    """Models are those of workers; what `serve` itself refuses is refused before anything is written."""
    refused = promptmill(*DEPLOY, "--", *flags, check=False)
    assert (refused.returncode, said in refused.stderr) == (2, True)
