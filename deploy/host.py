"""The machine: the only module of these that asks or changes anything outside the files it is given."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.plan import File, Folder, Step
from jobs.errors import PromptmillError, RefusedError

__all__ = ["DeployError", "Done", "Host", "Runner", "run_command"]

ADMIN_GROUPS = ("admin", "sudo", "wheel")
FREE_IDS = range(350, 400)
"""Users without a login have ids below 400 on macOS; Apple's own are at the lower end."""
POLL_S = 0.5
_VOLUMES = Path("/Volumes")
"""Where macOS shows disks: the folder of one that is away is not there, and is not to be made."""


class DeployError(PromptmillError):
    """A command of an installation failed; the message has its output."""

    code = "deploy_failed"


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended and what it printed."""

    status: int
    output: str


Runner = Callable[[Sequence[str]], Done]


def run_command(command: Sequence[str]) -> Done:
    """Run a command and wait for it."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return Done(127, str(error))
    return Done(done.returncode, done.stdout.decode(errors="replace").strip())


class Host:
    """A machine, or with ``root`` a folder that stands for its ``/``: there no command changes anything and nobody is
    made owner."""

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
        self._runner = runner
        self._clock = clock
        self._sleep = sleep
        self._is_mount = is_mount

    def at(self, path: Path) -> Path:
        """Where a path of the machine really is."""
        return path if self.root is None else self.root / path.relative_to("/")

    def uid_of(self, user: str) -> int | None:
        """The user's id; None where there is no such user."""
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user).pw_uid
        return None

    def group_of(self, user: str) -> str | None:
        """The name of the user's first group; None where there is no such user."""
        try:
            gid = pwd.getpwnam(user).pw_gid
        except KeyError:
            return None
        try:
            return grp.getgrgid(gid).gr_name
        except KeyError:
            return str(gid)

    def groups_of(self, user: str) -> frozenset[int]:
        """The ids of all groups of a user; none where there is no such user."""
        try:
            return frozenset(os.getgrouplist(user, pwd.getpwnam(user).pw_gid))
        except KeyError:
            return frozenset()

    def gid_of(self, group: str) -> int | None:
        """The group's id; None where there is no such group."""
        with contextlib.suppress(KeyError):
            return grp.getgrnam(group).gr_gid
        return None

    def is_admin(self, user: str) -> bool:
        """Whether the user administers this machine, or would: one who is not there yet joins the group of that
        name."""
        mine = self.groups_of(user) if self.uid_of(user) is not None else {self.gid_of(user)}
        return any(gid is not None and gid in mine for gid in (0, *map(self.gid_of, ADMIN_GROUPS)))

    def free_id(self) -> int:
        """A number that is neither a user's nor a group's.

        Raises:
            RefusedError: there is none left.
        """
        for number in FREE_IDS:
            if not _known(pwd.getpwuid, number) and not _known(grp.getgrgid, number):
                return number
        raise RefusedError("no user id from 350 to 399 is free: make the user yourself, then name it with --user")

    def memory(self) -> int:
        """Bytes of memory of this machine."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

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
        try:
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise RefusedError(f"{path} is not a folder: move it away, root follows no link")
            if path.exists():
                self._check_owner(path, folder.owner)
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            with _opened(path, os.O_DIRECTORY) as handle:
                self._own(path, handle, folder.owner, folder.group)
                os.fchmod(handle, folder.mode)
        except OSError as error:
            raise DeployError(f"{path}: {error.strerror}") from None
        return True

    def _check_owner(self, path: Path, owner: str) -> None:
        if self.root is None and path.stat().st_uid != self.uid_of(owner):
            raise RefusedError(f"{path} is not {owner}'s: choose another folder or user, or give it away with chown")

    def keep(self, file: File) -> None:
        """Give a file that is there its mode and owner, and leave what is in it. By what was opened, never by name:
        in a folder of the service's user the name may be another's a moment later.

        Raises:
            DeployError: that cannot be done, or it is no plain file.
        """
        path = self.at(file.path)
        try:
            with _opened(path, os.O_NONBLOCK) as handle:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                    raise DeployError(f"{path} is no plain file of its own: look at it, and move it away")
                self._own(path, handle, file.owner, file.group)
                os.fchmod(handle, file.mode)
        except OSError as error:
            raise DeployError(f"{path}: {error.strerror}") from None

    def write(self, file: File) -> None:
        """Write a file in one step: it is never there in part, nor open to more than it will be.

        Raises:
            DeployError: it cannot be written.
        """
        path = self.at(file.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as written:
                    written.write(file.text)
                    written.flush()
                    self._own(path, handle, file.owner, file.group)
                    os.fchmod(handle, file.mode)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise DeployError(f"{path}: {error.strerror}") from None

    def remove(self, path: Path) -> bool:
        """Remove a file; whether it was there.

        Raises:
            DeployError: it cannot be removed.
        """
        try:
            self.at(path).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DeployError(f"{self.at(path)}: {error.strerror}") from None
        return True

    def remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            self.at(folder).rmdir()

    def output(self, command: Sequence[str]) -> str:
        """What a command prints; nothing where it fails, or a folder stands for the machine."""
        if self.root is not None:
            return ""
        done = self._runner(command)
        return done.output if done.status == 0 else ""

    def ask(self, command: Sequence[str]) -> Done:
        """How a command ends that changes nothing; it is run even where a folder stands for the machine."""
        return self._runner(command)

    def run(self, step: Step, say: Callable[[str], None] = lambda _: None) -> None:
        """Run a command; ``say`` is told what is waited for.

        Raises:
            DeployError: it failed and may not, or did not come to what is waited for in time.
        """
        limit = self._clock() + max(step.until_works_s, step.until_fails_s or 0.0)
        waits = step.waits
        while True:
            if waits and step.until_fails_s is None:
                say(waits)
                waits = ""
            done = self._runner(step.command)
            wanted = done.status != 0 if step.until_fails_s is not None else done.status == 0
            if wanted:
                return
            if self._clock() >= limit:
                break
            if waits:
                say(waits)
                waits = ""
            self._sleep(POLL_S)
        command = " ".join(step.command)
        if step.until_fails_s is not None:
            raise DeployError(f"the service still runs after {step.until_fails_s:.0f} seconds ({command})")
        if not step.may_fail:
            said = f"`{command}` failed with status {done.status}: {done.output or 'it says nothing'}"
            raise DeployError(f"{said}; {step.remedy}" if step.remedy else said)

    def _own(self, path: Path, handle: int, user: str, group: str) -> None:
        if self.root is not None:
            return
        try:
            uid, gid = pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
        except KeyError as error:
            raise DeployError(f"{path}: {error.args[0]}: the user or group is not there") from None
        os.fchown(handle, uid, gid)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of what has this name, if it is no link."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | flags)
    try:
        yield handle
    finally:
        os.close(handle)


def _known(lookup: Callable[[int], object], number: int) -> bool:
    try:
        lookup(number)
    except KeyError:
        return False
    return True
