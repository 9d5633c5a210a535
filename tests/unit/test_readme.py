"""The README and the pages of docs/ say what the code does, and each page can be found."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate import PACKAGES, PAGES, summary
from jobs.lines.line import Defaults, check_line
from submit.cli import COMMANDS
from submit.client.batch import BatchHandle
from submit.client.client import Client

ROOT = Path(__file__).parents[2]
LONGEST_SUMMARY = 160
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTSIDE_DOCS = (
    "README.md",
    "CONTRIBUTING.md",
    "deploy/README.md",
    "deploy/redis/README.md",
    "deploy/prometheus/README.md",
    "bench/results/README.md",
    "examples/pocket/model/README.md",
)
DOCS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (*OUTSIDE_DOCS, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
}
PROSE = {name: re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE) for name, text in DOCS.items()}
LINES = [line for text in DOCS.values() for line in re.findall(r'^\{.*"(?:prompt|messages)".*\}$', text, re.MULTILINE)]
SNIPPETS = [code for text in DOCS.values() for code in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.M)]


def links(page: str) -> Iterator[tuple[Path, str]]:
    """The relative links of a page: the file or folder, and the heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if "://" not in target:
            path, _, heading = target.partition("#")
            yield ((ROOT / page).parent / path if path else ROOT / page).resolve(), heading


def anchors(text: str) -> set[str]:
    """The headings of a page, as GitHub writes them into links."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_the_codes(page: str) -> None:
    """The parameters, the commands and the modules stand in docs/ as `make docs` writes them."""
    # In a process of its own: click keeps the help option that a command had when its help was first asked for.
    script = "import sys; from docs.generate import generated; sys.stdout.write(generated(sys.argv[1]))"
    command = [sys.executable, "-c", script, page]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    assert DOCS[page] == found, "run `make docs`"


def test_every_module_says_briefly_what_is_in_it() -> None:
    """The first paragraph of each module's docstring is a line or two: docs/modules.md is made of them."""
    modules = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(summary(path)) for path in modules}
    assert {name: length for name, length in lengths.items() if not 0 < length <= LONGEST_SUMMARY} == {}


def test_every_command_is_explained() -> None:
    """Each command of the command line is named in the README."""
    assert [name for name in COMMANDS if f"promptmill {name}" not in README] == []


def test_the_readme_is_short() -> None:
    """A newcomer reads it in one go."""
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("line", LINES)
def test_lines_shown_are_lines_that_run(line: str) -> None:
    """Each prompt line shown as an example keeps the contract."""
    checked = check_line(line.encode())
    job = checked.job(index=0, line=1, batch_id="b_x", defaults=Defaults({"model": "m"}))
    assert job.generates or job.scored


@pytest.mark.parametrize("code", SNIPPETS)
def test_python_shown_is_python_that_runs(code: str) -> None:
    """Each Python example compiles, and what it calls on the client and its batches is there."""
    compile(code, "example", "exec")
    assert [name for name in re.findall(r"\bclient\.(\w+)\(", code) if not hasattr(Client, name)] == []
    assert [name for name in re.findall(r"\b(?:batch|nightly)\.(\w+)\(", code) if not hasattr(BatchHandle, name)] == []


@pytest.mark.parametrize("page", DOCS)
def test_every_link_resolves(page: str) -> None:
    """What a page links to in the repository is there: the file or folder, and the heading in it."""
    missing = [str(path.relative_to(ROOT)) for path, _ in links(page) if not path.exists()]
    assert missing == []
    wrong = [
        f"{path.name}#{heading}"
        for path, heading in links(page)
        if heading and heading not in anchors(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


def test_every_page_is_reachable_from_the_readme() -> None:
    """The README links to each page of docs/."""
    linked = {path for path, _ in links("README.md")}
    assert [name for name in DOCS if name.startswith("docs/") and (ROOT / name) not in linked] == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_paths_named_in_the_prose_exist(page: str) -> None:
    """Files and folders that stand in backticks are there."""
    named = re.findall(r"`((?:promptmill|jobs|submit|worker|deploy|bench|tests|docs|examples)/[\w./-]*)`", DOCS[page])
    assert [path for path in named if not (ROOT / path).exists()] == []
