"""The machine, for `deploy` and `doctor`: its commands, users and files."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from deploy.plan import File, Folder, PlanStep
from jobs.errors import PromptmillError, RefusedError

ADMIN_GROUPS = ("admin", "sudo", "wheel")
FREE_IDS = range(350, 400)
"""Users without a login have ids below 400 on macOS; Apple's own are at the lower end."""
POLL_S = 0.5
TOOL_TIMEOUT_S = 3.0
TIMED_OUT, NOT_RUN = 124, 127
"""Exit statuses, as shells give them, of a command that took too long, and of one that is not there."""
_VOLUMES = Path("/Volumes")
"""Where macOS shows disks: the folder of one that is away is not there, and is not to be made."""


class DeployError(PromptmillError):
    """A command of an installation failed; the message has its output."""

    code = "deploy_failed"


Runner = Callable[[Sequence[str], float | None], CompletedProcess[str]]
"""Runs a command, within so many seconds unless that is None."""


def run_command(command: Sequence[str], timeout_s: float | None = None) -> CompletedProcess[str]:
    """Run a command and wait for it."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return CompletedProcess(command, TIMED_OUT, "", f"no answer within {timeout_s:g} s")
    except OSError as error:
        return CompletedProcess(command, NOT_RUN, "", str(error))


def printed(done: CompletedProcess[str]) -> str:
    """All that a command printed."""
    return "\n".join(filter(None, (done.stdout.strip(), done.stderr.strip())))


@dataclass(frozen=True, slots=True)
class User:
    """A user of the machine, with its first group and the ids of all its groups; ``uid`` is None where there is no user
    of that name yet."""

    name: str
    uid: int | None = None
    group: str | None = None
    gids: frozenset[int] = frozenset()


def user_name(uid: int) -> str | None:
    """The name of the user with this id; None of a number without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


class Host:
    """A machine, or with ``root`` a folder that stands for its ``/``: there no command changes anything and nobody is
    made owner. The commands that were left out for that are in ``not_run``."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        runner: Runner = run_command,
        platform: str = sys.platform,
        uid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        is_mount: Callable[[Path], bool] = os.path.ismount,
    ) -> None:
        self.root = root
        self.platform = platform
        self.is_root = (os.geteuid() if uid is None else uid) == 0
        self.not_run: list[str] = []
        self._runner = runner
        self._clock = clock
        self._sleep = sleep
        self._is_mount = is_mount

    def at(self, path: Path) -> Path:
        """Where a path of the machine really is."""
        return path if self.root is None else self.root / path.relative_to("/")

    def user(self, name: str) -> User:
        """The user of this name, who may not be there yet."""
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            return User(name)
        group = _group_name(found.pw_gid) or str(found.pw_gid)
        return User(name, found.pw_uid, group, frozenset(os.getgrouplist(name, found.pw_gid)))

    def gid_of(self, group: str) -> int | None:
        """The group's id; None where there is no such group."""
        with contextlib.suppress(KeyError):
            return grp.getgrnam(group).gr_gid
        return None

    def is_admin(self, user: User) -> bool:
        """Whether the user administers this machine, or would: one who is not there yet joins the group of that
        name."""
        mine = user.gids if user.uid is not None else {self.gid_of(user.name)}
        return any(gid is not None and gid in mine for gid in (0, *map(self.gid_of, ADMIN_GROUPS)))

    def free_id(self) -> int:
        """A number that is neither a user's nor a group's.

        Raises:
            RefusedError: there is none left.
        """
        for number in FREE_IDS:
            if user_name(number) is None and _group_name(number) is None:
                return number
        raise RefusedError("no user id from 350 to 399 is free: make the user yourself, then name it with --user")

    def memory(self) -> int | None:
        """Bytes of memory of this machine; None where the system does not say."""
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None

    def exists(self, path: Path) -> bool:
        return self.at(path).exists()

    def read(self, path: Path) -> str | None:
        """A file's text; None where it is not there or not for us."""
        try:
            return self.at(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def check_disk(self, path: Path) -> None:
        """See that the disk that a path is on is there.

        Raises:
            RefusedError: nothing is mounted where macOS would show it.
        """
        if self.root is not None or self.platform != "darwin":
            return
        parts = path.resolve().parts
        if parts[:2] == _VOLUMES.parts and len(parts) > 2 and not self._is_mount(disk := _VOLUMES / parts[2]):
            raise RefusedError(f"{path}: no disk is mounted at {disk}: attach it, or choose another folder")

    def make_folder(self, folder: Folder) -> bool:
        """Make a folder; whether it was missing. One that is there stays as it is.

        Raises:
            DeployError: it cannot be made.
            RefusedError: what is there is no folder, or somebody else's.
        """
        path = self.at(folder.path)
        with _failing(path):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise RefusedError(f"{path} is not a folder: move it away, root follows no link")
            if path.exists():
                owner = folder.owner
                if self.root is None and path.stat().st_uid != self.user(owner).uid:
                    raise RefusedError(
                        f"{path} is not {owner}'s: choose another folder or user, or give it away with chown"
                    )
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            with _opened(path, os.O_DIRECTORY) as handle:
                self._give(handle, path, folder)
        return True

    def keep(self, file: File) -> None:
        """Give a file that is there its mode and owner, and leave what is in it. By what was opened, never by name:
        in a folder of the service's user the name may be another's a moment later.

        Raises:
            DeployError: that cannot be done, or it is no plain file.
        """
        path = self.at(file.path)
        with _failing(path), _opened(path, os.O_NONBLOCK) as handle:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise DeployError(f"{path} is no plain file of its own: look at it, and move it away")
            self._give(handle, path, file)

    def write(self, file: File) -> None:
        """Write a file in one step: it is never there in part, nor open to more than it will be.

        Raises:
            DeployError: it cannot be written.
        """
        path = self.at(file.path)
        with _failing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as written:
                    written.write(file.text)
                    written.flush()
                    self._give(handle, path, file)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def remove(self, path: Path) -> bool:
        """Remove a file; whether it was there.

        Raises:
            DeployError: it cannot be removed.
        """
        with _failing(self.at(path)):
            try:
                self.at(path).unlink()
            except FileNotFoundError:
                return False
        return True

    def remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            self.at(folder).rmdir()

    def output(self, command: Sequence[str]) -> str:
        """What a tool prints on stdout, whatever its exit status; nothing where it does not run or takes too long, or a
        folder stands for the machine."""
        return "" if self.root is not None else self._runner(command, TOOL_TIMEOUT_S).stdout

    def ask(self, command: Sequence[str]) -> CompletedProcess[str]:
        """How a command ends that changes nothing; it is run even where a folder stands for the machine."""
        return self._runner(command, None)

    def run(self, step: PlanStep, say: Callable[[str], None] = lambda _: None) -> None:
        """Run a command; ``say`` shows what is waited for.

        Raises:
            DeployError: it failed and may not, or did not come to what is waited for in time.
        """
        if self.root is not None:
            self.not_run.append(step.shown)
            return
        until_fails, waits = step.until_fails_s is not None, step.waits
        limit = self._clock() + max(step.until_works_s, step.until_fails_s or 0.0)
        if waits and not until_fails:
            say(waits)
        while True:
            done = self._runner(step.command, None)
            if (done.returncode != 0) is until_fails:
                return
            if self._clock() >= limit:
                break
            if waits and until_fails:
                say(waits)
                waits = ""
            self._sleep(POLL_S)
        command = " ".join(step.command)
        if until_fails:
            raise DeployError(f"the service still runs after {step.until_fails_s:.0f} seconds ({command})")
        if not step.may_fail:
            said = f"`{command}` failed with status {done.returncode}: {printed(done) or 'it says nothing'}"
            raise DeployError(f"{said}; {step.remedy}" if step.remedy else said)

    def _give(self, handle: int, path: Path, made: File | Folder) -> None:
        """Give what was opened its owner, then its mode: for a moment it is open to less, never to more."""
        self._own(path, handle, made.owner, made.group)
        os.fchmod(handle, made.mode)

    def _own(self, path: Path, handle: int, user: str, group: str) -> None:
        if self.root is None:
            try:
                shutil.chown(handle, user, group)
            except LookupError as error:
                raise DeployError(f"{path}: {error}") from None


@contextlib.contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Turn the system's errors into one that names the path."""
    try:
        yield
    except OSError as error:
        raise DeployError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of what has this name, if it is no link."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | flags)
    try:
        yield handle
    finally:
        os.close(handle)


def _group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None
