"""One pipeline at a time writes under an OUTROOT; what killed ones left behind goes at the start.

The lock is held by the pipeline and by the processes that it started, which inherit the open file:
it ends with the last of them.
"""

import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model_diffs.core.errors import BadInput
from model_diffs.core.folders import PARTIAL, Unfinished, unfinished
from model_diffs.core.parent import here, pid_of, process_lives

PRODUCED = ("data", "models", "unlearned_models", "artifacts")
"""Folders beside OUTROOT in which scripts write."""
PATIENCE = 30.0
"""Seconds that the processes of a killed pipeline have to end."""


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(handle: int, outroot: str) -> None:
    """Wait for the lock of a pipeline that ended before its processes; BadInput for a living one.

    The holder names itself in the file. An empty file is that of one that has not yet done so.
    """
    until, said = time.monotonic() + PATIENCE, False
    while not _locked(handle):
        holder = os.pread(handle, 300, 0).decode("utf-8", "replace").strip()
        pid = pid_of(holder)
        if pid is None or process_lives(pid) or time.monotonic() > until:
            by = f" (process {holder})" if holder else ""
            raise BadInput(
                f"another pipeline is running on {outroot}{by}: wait for it, or set OUTROOT"
            )
        if not said:
            print(f"waiting for processes of a pipeline that was ended on {outroot} …", flush=True)
            said = True
        time.sleep(0.1)


def _refuse_other_host(handle: int, path: Path) -> None:
    """BadInput where the file names a pipeline of another host: its lock may not be seen here."""
    holder = os.pread(handle, 300, 0).decode("utf-8", "replace").strip()
    if "@" in holder and holder.partition("@")[2] != socket.gethostname():
        raise BadInput(
            f"a pipeline on another host writes there (process {holder}): wait for it, or, if it "
            f"was killed, remove {path}"
        )


@contextmanager
def hold(outroot: str) -> Iterator[int]:
    """Hold the lock of an outroot; gives its file descriptor, for children to inherit."""
    path = Path(outroot) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{outroot} cannot be written ({reason}): set OUTROOT") from error
    try:
        try:
            _wait(handle, outroot)
        except OSError as error:
            print(
                f"warning: {path} cannot be locked here ({error.strerror}): start no second "
                "pipeline on it",
                file=sys.stderr,
            )
        _refuse_other_host(handle, path)
        _name_holder(handle, here(os.getpid()))
        yield handle
        _name_holder(handle, "")
    finally:
        os.close(handle)


def _name_holder(handle: int, name: str) -> None:
    with suppress(OSError):  # a full disk: the lock holds, though without a name
        os.ftruncate(handle, 0)
        os.pwrite(handle, name.encode(), 0)


# ── leftovers ─────────────────────────────────────────────────────────────────────────────────────


def _remove(path: Path, found: Unfinished) -> None:
    final = path.with_name(found.final)
    if found.old and not final.exists():
        path.rename(final)  # killed between the two renames of a replacement
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_leftovers(roots: Iterable[str | Path]) -> None:
    """Remove what killed processes left unfinished anywhere under these folders.

    An earlier result that was moved aside for a new one that never came is put back.
    """
    for root in roots:
        for folder, folders, files in os.walk(root):
            for name in [*folders, *files]:
                path = Path(folder) / name
                with suppress(OSError):
                    found = unfinished(path)
                    if found and found.left:
                        _remove(path, found)
            folders[:] = [one for one in folders if not one.endswith(PARTIAL)]
