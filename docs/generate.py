"""The generated parts of the documentation: ``python -m docs.generate`` writes them anew.

A page marks each part by a comment of the part's name before it and ``<!-- end -->`` after it.
"""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

from docs.reference import command_reference, parameter_table, worker_table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("promptmill", "jobs", "submit", "serve", "worker", "deploy", "bench")
PAGES = {
    "docs/lines.md": ("parameters", parameter_table),
    "docs/workers.md": ("options", worker_table),
    "docs/cli.md": ("commands", command_reference),
    "docs/modules.md": ("modules", lambda: module_list(ROOT)),
}
"""Which page has which part, and what makes it."""


def generated(page: str) -> str:
    """A page of the documentation with its generated part made anew."""
    name, make = PAGES[page]
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(\n<!-- end -->)", re.DOTALL)
    found, count = pattern.subn(lambda match: f"{match[1]}\n{make()}\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"{page} has {count} parts named {name!r}")
    return found


def module_list(root: Path) -> str:
    """A section for each top-level package, a line for each module: what its docstring begins with."""
    sections = []
    for package in PACKAGES:
        lines = [f"## {package}", "", summary(root / package / "__init__.py"), ""]
        lines += _listed(root / package, depth=0)
        sections.append("\n".join(lines).rstrip())
    return "\n\n".join(sections)


def _listed(folder: Path, *, depth: int) -> list[str]:
    indent = "  " * depth
    lines = []
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            lines.append(f"{indent}- `{path.stem}`: {summary(path)}")
    for path in sorted(folder.glob("*/__init__.py")):
        lines.append(f"{indent}- **`{path.parent.name}/`** {summary(path)}")
        lines += _listed(path.parent, depth=depth + 1)
    lines += [
        f"{indent}- `{path.relative_to(folder)}`: {purpose(path)}" for path in sorted(folder.glob("lua/**/*.lua"))
    ]
    return lines


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line, as Markdown."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.sub(r"(?::\w+:)?(`+)(.+?)\1", r"`\2`", " ".join(docstring.split("\n\n")[0].split()))


def purpose(path: Path) -> str:
    """The first sentence of the comment at the head of a Lua script."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("- ") for line in itertools.takewhile(lambda line: line.startswith("--"), lines))
    return comment.split(". ")[0].rstrip(".") + "."


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(generated(page), encoding="utf-8")
