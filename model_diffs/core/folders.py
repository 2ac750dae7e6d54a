"""Folders and files written whole or not at all: a hidden sibling that is renamed into place."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.core.parent import process_lives

PARTIAL = ".partial"


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
        old = final.parent / f".{final.name}.{os.getpid()}.old{PARTIAL}"
        final.rename(old)
        new.rename(final)
        shutil.rmtree(old)
    else:
        new.rename(final)


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden siblings of `folder` that killed runs left behind."""
    for sibling in folder.parent.glob(f".{folder.name}.*{PARTIAL}"):
        pid = sibling.name[len(folder.name) + 2 :].split(".")[0]
        if pid.isdigit() and not process_lives(int(pid)):
            shutil.rmtree(sibling, ignore_errors=True)


def working_folder(folder: Path) -> Path:
    """A new hidden sibling of `folder`; BadInput where none can be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        path = folder.parent / f".{folder.name}.{os.getpid()}{PARTIAL}"
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
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
