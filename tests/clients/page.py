"""``docs/clients.md``: a row per client, and what did not pass, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from tests.clients.client import FAILED, PASSED, SKIPPED, Row

HEAD = """# Clients, as they ran

Made by `make clients`: unchanged clients and test suites of other projects against a running `promptmill serve`, with
keys, a Redis of its own and the real worker on the [pocket model](../examples/pocket/model/README.md). Nothing is
patched, but for the few lines that the table names. [http](http.md) says what the server does.

```console
$ make clients                                # all of them, and this page
$ make clients CLIENTS='litellm llama-stack'  # some of them
$ make clients SUITES=~/suites FOLDER=~/clients
```

It takes about five minutes on two idle cores, and the installation; PyPI and GitHub must be reachable. Each client gets
an environment of its own with the versions that are named here, in `FOLDER`, which is kept (by default it is in the
folder of temporary files). Suites are taken from `SUITES/NAME` as they lie there, else cloned at the commit named here;
they are no part of this repository. Logs are in `FOLDER/work/NAME`. The exit status is 1 where a check fails for no
reason that is named below, and where one passes that has a reason not to.

"""
COLUMNS = ("client", "version", "what runs", "passed", "failed", "skipped", "seconds", "on")
LEFT = """
## What did not pass, and why

"""


def markdown(rows: Sequence[Row]) -> str:
    """The page."""
    cells = [
        [
            row.name, row.version, row.what, str(row.count(PASSED)), str(row.count(FAILED)), str(row.count(SKIPPED)),
            f"{row.seconds:.0f}", row.on,
        ]
        for row in rows
    ]  # fmt: skip
    left: list[list[str]] = []
    for row in rows:
        left += [
            [row.name, f"`{check.name}`", check.outcome, check.why] for check in row.checks if check.outcome != PASSED
        ]
        if row.left_out:
            left.append([row.name, "", "left out", row.left_out])
    page = HEAD + _table(COLUMNS, cells)
    return page + LEFT + _table(("client", "check", "", "why"), left) if left else page


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
