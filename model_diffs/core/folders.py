"""Folders and files written whole or not at all: a hidden sibling that is renamed into place."""

import errno
import glob
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.core.parent import process_lives

PARTIAL = ".partial"
_UNFINISHED = re.compile(
    r"\.(?P<name>.+)\.(?P<pid>\d{1,9})@(?P<host>[\w-]+)(?P<old>\.old)?" + re.escape(PARTIAL)
)
FORGOTTEN = 86400.0
"""Seconds after which what a process of another host left untouched counts as left behind."""


class Unfinished(NamedTuple):
    """What the name of a hidden sibling says."""

    final: str
    """Name of what it was to become."""
    old: bool
    """An earlier result that made way for it."""
    left: bool
    """Whether the process that wrote it is gone."""


def _host() -> str:
    return re.sub(r"\W", "-", socket.gethostname().partition(".")[0]) or "here"


def unfinished_name(name: str, old: bool = False) -> str:
    """Name of the hidden sibling that this process writes for `name`.

    It holds process and host: several machines may share a folder.
    """
    return f".{name}.{os.getpid()}@{_host()}{'.old' if old else ''}{PARTIAL}"


def unfinished(path: Path) -> Unfinished | None:
    """What is known of a hidden sibling by its name; None for any other file or folder.

    Of another host's processes nothing is known: theirs are left behind after a day.
    """
    found = _UNFINISHED.fullmatch(path.name)
    if not found:
        return None
    if found["host"] == _host():
        left = not process_lives(int(found["pid"]))
    else:
        every = [path, *path.rglob("*")] if path.is_dir() else [path]
        left = time.time() - max(one.lstat().st_mtime for one in every) > FORGOTTEN
    return Unfinished(found["name"], bool(found["old"]), left)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none or it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return None


def replace(new: Path, final: Path) -> None:
    """Put `new` where `final` is. Between the two renames there is no folder, never half a one."""
    if final.exists():
        old = final.parent / unfinished_name(final.name, old=True)
        final.rename(old)
        new.rename(final)
        shutil.rmtree(old)
    else:
        new.rename(final)


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden siblings of `folder` that killed runs left behind."""
    for sibling in folder.parent.glob(f".{glob.escape(folder.name)}.*{PARTIAL}"):
        found = unfinished(sibling)
        if found and found.final == folder.name and found.left:
            shutil.rmtree(sibling, ignore_errors=True)


def working_folder(folder: Path) -> Path:
    """A new hidden sibling of `folder`; BadInput where none can be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        path = folder.parent / unfinished_name(folder.name)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise BadInput(f"{folder} cannot be written ({error.strerror}): choose another") from error
    return path


@contextmanager
def scratch_folder(name: Path) -> Iterator[Path]:
    """A hidden folder beside `name` for temporary files, removed when the block ends.

    Those that killed runs left behind are removed, too.
    """
    folder = working_folder(name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden sibling of `path` to write, renamed to `path` when the block ends without error."""
    partial = path.with_name(unfinished_name(path.name))
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
