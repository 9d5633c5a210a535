"""Whether Python finds promptmill's own top-level packages, or another distribution's of the same names."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("jobs", "submit", "serve", "worker", "deploy")
REFUSED = 2


def exit_unless_ours() -> None:
    """End a program with what :func:`check_packages` says, before it imports any of our packages."""
    try:
        check_packages()
    except ImportError as error:
        sys.stderr.write(f"promptmill: {error}\n")
        sys.exit(REFUSED)


def check_packages() -> None:
    """See that each of our packages lies beside this one.

    Raises:
        ImportError: another of its name is in the way, or it is missing; with the remedy.
    """
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        found = _place_of(name)
        if found is None:
            raise ImportError(f"the package '{name}' is missing from {home}: install promptmill again")
        if found.resolve() != (home / name).resolve():
            raise ImportError(
                f"another package named '{name}' is in the way: Python finds {found} before promptmill's own, "
                f"{home / name}. Take its folder out of PYTHONPATH, start promptmill from another folder, or install "
                "promptmill into a virtual environment of its own"
            )


def _place_of(name: str) -> Path | None:
    """The folder of the package that Python imports by this name; the file where it is a module."""
    spec = find_spec(name)
    if spec is None:
        return None
    place = next(iter(spec.submodule_search_locations or ()), spec.origin)
    return None if place is None else Path(place)
