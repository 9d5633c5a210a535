"""What `make dist` built, checked: that the sdist and the wheel are whole, and that the installed wheel runs the demo.

python -m tests.e2e.dist dist
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PACKAGES = ("promptmill/", "jobs/", "submit/", "worker/", "deploy/")
CODE = (".py", ".lua", ".template", "-certs.sh", "py.typed")


def main(folder: Path) -> None:
    """Check the one wheel and the one sdist in ``folder``."""
    (wheel,) = folder.resolve().glob("*.whl")
    (sdist,) = folder.resolve().glob("*.tar.gz")
    tracked = set(_printed(["git", "ls-files"], ROOT).splitlines())
    with tarfile.open(sdist) as archive:
        _hold(sdist, {name.partition("/")[2] for name in archive.getnames()}, tracked)
    with zipfile.ZipFile(wheel) as archive:
        _hold(wheel, set(archive.namelist()), {n for n in tracked if n.startswith(PACKAGES) and n.endswith(CODE)})
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as place:
        _run_demo(wheel, Path(place).resolve())


def _hold(file: Path, found: set[str], wanted: set[str]) -> None:
    if lacking := sorted(wanted - found):
        sys.exit(f"{file.name} lacks {', '.join(lacking)}")
    sys.stdout.write(f"{file.name} has all {len(wanted)} files that it should have\n")


def _run_demo(wheel: Path, place: Path) -> None:
    """The demo in ``place``, by the wheel in an environment of its own, with nothing of the checkout but the file of
    prompts and the model."""
    venv.create(place / "venv", with_pip=True)
    programs = place / "venv" / "bin"
    versions = place / "versions.txt"
    # Without the hashes, which pip would then ask of the wheel too.
    versions.write_text(re.sub(r" \\\n +--hash=\S+", "", (ROOT / "requirements.lock").read_text()))
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", versions, f"{wheel}[worker]"], check=True)
    where = _printed([programs / "python", "-c", "import submit; print(submit.__file__)"], place).strip()
    if not where.startswith(str(place)):
        sys.exit(f"the environment of the wheel imports submit from {where}")

    shutil.copy(EXAMPLES / "prompts.jsonl", place)
    shutil.copytree(EXAMPLES / "pocket" / "model", place / "model")
    command = [programs / "promptmill", "run", "prompts.jsonl", "-o", "results.jsonl", "--model", "model"]
    environ = {**os.environ, "PROMPTMILL_DATA_DIR": str(place / "data")}
    subprocess.run(command, cwd=place, env=environ, check=True)
    lines, records = ((place / name).read_bytes().splitlines() for name in ("prompts.jsonl", "results.jsonl"))
    if len(records) != len(lines):
        sys.exit(f"{len(lines)} lines have {len(records)} records")
    sys.stdout.write(f"{wheel.name}, installed, ran the demo: {len(lines)} lines, a record for each\n")


def _printed(command: list[str | Path], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
