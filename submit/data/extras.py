"""The optional packages that tables and templates need: there, or an error that says how to get them."""

from __future__ import annotations

import importlib.util

from jobs.errors import RefusedError

PACKAGES = {"jinja2": "jinja2", "pyarrow": "pyarrow", "huggingface_hub": "huggingface_hub", "yaml": "pyyaml"}


def require(module: str, what: str) -> None:
    """See that a package of the extra ``data`` is installed, without importing it.

    Raises:
        RefusedError: it is not; ``what`` needs it.
    """
    if importlib.util.find_spec(module) is None:
        raise RefusedError(f"{what} needs the package {PACKAGES[module]}: pip install 'promptmill[data]'")
