"""Programs that a machine may lack. A test that needs one is skipped there, and the skip says which."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRED = "PROMPTMILL_TEST_PROGRAMS"
"""An environment variable: where it is set nothing may be missing, so that no test is skipped unnoticed."""


def needs(*programs: str) -> pytest.MarkDecorator:
    """A mark for tests that run these programs, found on PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    reason = f"{' and '.join(missing)} not on PATH"
    if missing and os.environ.get(REQUIRED):
        pytest.fail(f"{reason}, and {REQUIRED} is set: a machine that tests everything has it", pytrace=False)
    return pytest.mark.skipif(bool(missing), reason=reason)
