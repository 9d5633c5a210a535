"""Unchanged clients against `promptmill serve`: ``python -m tests.clients [NAME ...]`` runs them and writes the page.

Exit status 1: a check failed for no reason that is known, or passed in spite of one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

import orjson

from tests.clients import (
    curator,
    distilabel,
    inspect_ai,
    litellm,
    llama_stack,
    lm_eval,
    lm_eval_scoring,
    openai_client,
    page,
    schemathesis,
)
from tests.clients.client import FAILED, PASSED, Check, Client, Row, judged
from tests.clients.environment import ROOT, place

CLIENTS: tuple[Client, ...] = (
    openai_client.CLIENT,
    litellm.CLIENT,
    llama_stack.CLIENT,
    schemathesis.CLIENT,
    inspect_ai.CLIENT,
    distilabel.CLIENT,
    curator.CLIENT,
    lm_eval.CLIENT,
    lm_eval_scoring.CLIENT,
)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def run(client: Client, folder: Path, suites: Path) -> tuple[Row, list[str]]:
    """Run a client; its row, and what is wrong."""
    say(f"{client.name} {client.version}: {client.what}")
    begun = time.monotonic()
    with place(client, folder, suites) as where:
        checks, wrong = judged(client, client.run(where))
    row = Row(
        client.name, client.version, client.what, f"{date.today()}", time.monotonic() - begun, checks, client.left_out
    )
    for check in checks:
        if check.outcome != PASSED:
            say(f"  {check.outcome}: {check.name}: {check.why}")
    say(f"  {row.count(PASSED)} passed, {row.count(FAILED)} failed, in {row.seconds:.0f} s")
    return row, wrong


def kept(folder: Path, row: Row) -> None:
    """Keep a row for the page."""
    path = folder / "rows" / f"{row.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(orjson.dumps(asdict(row), option=orjson.OPT_INDENT_2))


def rows_of(folder: Path) -> list[Row]:
    """The latest row of each client that has one."""
    found = []
    for client in CLIENTS:
        path = folder / "rows" / f"{client.name}.json"
        if path.exists():
            told = orjson.loads(path.read_bytes())
            found.append(Row(**{**told, "checks": tuple(Check(**check) for check in told["checks"])}))
    return found


def main() -> int:
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all where none is given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "promptmill-clients")
    parser.add_argument("--suites", type=Path, help="folder of checkouts; by default `suites` in the other folder")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "clients.md")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(names):
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    folder = flags.folder.expanduser().resolve()
    if folder.is_relative_to(ROOT):
        parser.error(f"--folder {folder} lies in this repository: environments and suites stay outside")
    folder.mkdir(parents=True, exist_ok=True)
    suites = (flags.suites or folder / "suites").expanduser().resolve()
    wrong: list[str] = []
    for client in CLIENTS:
        if not flags.names or client.name in flags.names:
            row, found = run(client, folder, suites)
            kept(folder, row)
            wrong += found
    flags.page.write_text(page.markdown(rows_of(folder)), encoding="utf-8")
    for text in wrong:
        say(f"wrong: {text}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
