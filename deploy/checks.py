"""Checks before anything is installed: names, paths, URLs and models."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from deploy.host import User
from jobs.errors import RefusedError
from jobs.redis.connect import redacted

ROOT_UID = 0
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SCHEMES = ("redis", "rediss", "unix")
_HUB_NAME = re.compile(r"(?:[A-Za-z0-9_](?:[\w.-]*\w)?/)?[A-Za-z0-9_](?:[\w.-]*\w)?", re.ASCII)
"""A repository of the Hugging Face Hub, as the Hub itself takes them: 96 characters, and neither -- nor .. in them."""
_HUB_REVISION = re.compile(r"[\w][\w./-]*", re.ASCII)
_FLAG_WORDS = ("Usage: promptmill", "promptmill worker: ", "promptmill: ")
_NO_CHECK = re.compile(r"No such option:? '?--check\b(?!-)")
"""Said by a promptmill that is older than this flag."""
_HOMES = ("/Users", "/home", "/root", "/private/var/root", "/var/root")


def check_user(name: str) -> str:
    """A name that both systems take, and not root's.

    Raises:
        RefusedError: it is none.
    """
    if name == "root" or not _USER.fullmatch(name):
        raise RefusedError(
            f"--user {name!r}: give a user of its own, not root, in lower-case letters, digits, - and _, "
            "at most 31 of them, such as promptmill"
        )
    return name


def check_label(label: str) -> str:
    """A label is part of file names.

    Raises:
        RefusedError: it may not be.
    """
    if not _LABEL.fullmatch(label) or ".." in label:
        raise RefusedError(f"--label {label!r}: use letters, digits, '.', '-' and '_', such as promptmill-worker")
    return label


def check_plain(words: Iterable[str], what: str) -> None:
    """Refuse what a property list, a unit or a settings file cannot hold.

    Raises:
        RefusedError: a control character, or a lone surrogate.
    """
    for word in words:
        if not word.isprintable():
            raise RefusedError(f"{what} {word!r}: has characters that cannot be printed; leave them out")


def check_redis_url(url: str) -> str:
    """A Redis URL, checked as far as that is possible without connecting.

    Raises:
        RefusedError: it is none; the message shows no password.
    """
    shown = redacted(url)
    if not url.isprintable() or shown == "(an invalid URL)":
        raise RefusedError(
            "--redis is not a Redis URL: what is special in a user or password (/ # ? @) is to be %-encoded"
        )
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise RefusedError(f"--redis {shown}: write redis://HOST, rediss://HOST (TLS) or unix:///PATH")
    if parts.scheme != "unix" and not parts.hostname:
        raise RefusedError(f"--redis {shown}: names no host; write {parts.scheme}://HOST")
    if parts.scheme == "unix" and not parts.path.startswith("/"):
        raise RefusedError(f"--redis {shown}: names no socket; write unix:///PATH")
    return url


def check_model_name(model: str) -> str:
    """A model for a daemon, whose current folder is another.

    Raises:
        RefusedError: a folder of this one.
    """
    check_plain([model], "--model")
    if not model.strip():
        raise RefusedError("--model is empty: give a folder, or a Hugging Face repository")
    if model.startswith((".", "~")) or (not model.startswith("/") and Path(model).is_dir()):
        raise RefusedError(f"--model {model}: a daemon has another current folder; give the model's absolute path")
    name, at, revision = model.partition("@")
    named = _HUB_NAME.fullmatch(name) and len(name) <= 96 and "--" not in name and ".." not in name
    if not model.startswith("/") and not (named and (not at or _HUB_REVISION.fullmatch(revision))):
        raise RefusedError(
            f"--model {model}: is neither the absolute path of a folder nor a Hugging Face repository; write the "
            "latter as ORG/NAME or ORG/NAME@REVISION"
        )
    return model


def model_problem(model: str, user: User) -> str | None:
    """Why a worker of this user could not load a model from a folder of this machine; None where nothing is against
    it, and for the Hub's."""
    if not model.startswith("/"):
        return None
    missing = ": no folder of that name is there: give that of the model's config.json"
    remedy = "put the model where it may, such as below /opt/promptmill"
    return _folder_problem("--model", Path(model), user, missing, remedy)


def folder_problem(folder: Path, user: User) -> str | None:
    """Why a daemon of this user reads no files in a folder; None where nothing is against it."""
    missing = f" is no folder that is there: make it first, such as /srv/promptmill, open to {user.name}"
    remedy = "put the files into a folder that it may, such as /srv/promptmill"
    return _folder_problem("--read-from", folder, user, missing, remedy)


def _folder_problem(flag: str, folder: Path, user: User, missing: str, remedy: str) -> str | None:
    if not folder.is_dir():
        return f"{flag} {folder}{missing}"
    blocked = unreachable(folder, user)
    return None if blocked is None else f"{flag} {folder}: {user.name} may not pass {blocked}: {remedy}"


def owned_by_another(program: Path) -> bool:
    """Whether a program is neither root's nor beside the one that is running: root had better not run it."""
    return program.parent != Path(sys.executable).parent and program.stat().st_uid != ROOT_UID


def flags_problem(status: int, output: str) -> str | None:
    """What a promptmill that was asked to see its flags says against them; None where it says nothing of them."""
    if status != RefusedError.exit_status or not output.startswith(_FLAG_WORDS):
        return None
    if _NO_CHECK.search(output) or "needs MLX" in output:
        return None
    said = output.partition("\nError: ")[2] or output.partition(": ")[2]
    return " ".join(said.split()).rstrip(".")


def check_program(program: Path, flag: str = "--program") -> Path:
    """The path of what a daemon runs: absolute, and not of the kind that is somebody's home.

    Raises:
        RefusedError: it is not so.
    """
    check_plain([str(program)], flag)
    if not program.is_absolute() or ".." in program.parts:
        raise RefusedError(f"{flag} {program}: give the absolute path of the program")
    return program


def unreachable(path: Path, user: User) -> Path | None:
    """The first folder on the way to ``path``, links followed, or that file itself, that a user may not pass; None
    where all is open. What does not exist is passed over."""
    for part in (path.absolute(), path.resolve()):
        for step in (*reversed(part.parents), part):
            try:
                found = step.stat()
            except OSError:
                continue
            if not _may_pass(found, user):
                return step
    return None


def _may_pass(found: os.stat_result, user: User) -> bool:
    if found.st_uid == user.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid in user.gids:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def interpreter(program: Path) -> Path | None:
    """What runs a script, of its first line; None for other programs."""
    try:
        with program.open("rb") as file:
            first = file.readline(1024)
    except OSError:
        return None
    words = first[2:].split() if first.startswith(b"#!") else []
    return Path(os.fsdecode(words[0])) if words else None


def in_a_home(path: Path) -> bool:
    """Whether a path is in the home of a person."""
    return any(Path(home) in path.parents for home in _HOMES) and Path("/Users/Shared") not in path.parents


def reach_problem(program: Path, user: User) -> str | None:
    """Why a daemon of this user cannot run a program on this machine; None where nothing is against it."""
    if not program.exists():
        return f"{program} is not there: install it for all users (see deploy/README.md), or name it with --program"
    for part, what in ((program, "program"), (interpreter(program), "Python of")):
        blocked = None if part is None else unreachable(part, user)
        if part is not None and (blocked is not None or in_a_home(part) or in_a_home(part.resolve())):
            really = part.resolve()
            named = f"the {what} {program}" + (f", {really}," if really != program else "")
            why = f"is in a place of somebody's own ({blocked or really.parent}), which {user.name} cannot rely on"
            return (
                f"{named} {f'may not be run by {user.name}' if blocked == really else why}: install promptmill for all "
                "users, such as into /opt/promptmill/venv (see deploy/README.md), or name it with --program"
            )
    return None


def memory_problem(maxmemory: int, memory: int | None) -> str | None:
    """What is said of a server that may take more than three quarters of a machine's memory; None of less."""
    if memory is None or maxmemory <= memory * 3 // 4:
        return None
    return (
        f"--maxmemory {maxmemory / 2**30:.3g}G is more than three quarters of this machine's {memory / 2**30:.3g}G: "
        f"rewriting the append-only file needs the rest; give at most {memory * 3 // 4 / 2**30:.3g}G"
    )
