"""What a file holds, told by its hash: noted when a result is written, compared when it is judged.

Size and times are looked at first; a hash is only computed where they leave a doubt.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.folders import whole_file

# Hashes of files this large are kept from one process to the next: each takes seconds.
LARGE = 1 << 26
_CHUNK = 1 << 22
_known: dict[str, str] = {}


class Content(NamedTuple):
    """A file as it was: equal hashes are equal bytes."""

    size: int
    mtime_ns: int
    ctime_ns: int
    """Of the last change of content or attributes; unlike mtime no program can set it back."""
    sha256: str


def _kept() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "model_diffs/sha256.json")


def _read_kept() -> dict[str, str]:
    from model_diffs.core.folders import read_json

    with suppress(OSError):  # no home, or another user's
        found = read_json(_kept().expanduser())
        return found if isinstance(found, dict) else {}
    return {}


def _keep(key: str, digest: str) -> None:
    """Add a hash to those on disk; where they cannot be written, it is computed again."""
    path = _kept().expanduser()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(json.dumps({**_read_kept(), key: digest}))


def _hash(path: Path, size: int) -> str:
    from model_diffs.core.progress import progress

    digest = hashlib.sha256()
    with path.open("rb") as stream:
        if size < LARGE:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
            return digest.hexdigest()
        with progress(description=f"hash of {path.name}", total=size, unit="B") as bar:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, computed once while the file stays as it is."""
    stat = path.stat()
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    key = "-".join(map(str, parts))
    if key not in _known and stat.st_size >= LARGE:
        _known.update(_read_kept())
    if key not in _known:
        _known[key] = _hash(path, stat.st_size)
        if stat.st_size >= LARGE:
            _keep(key, _known[key])
    return _known[key]


def content(path: Path) -> Content:
    """What a file holds now."""
    stat = path.stat()
    return Content(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sha256(path))


def is_entry(value: Any) -> bool:
    """Whether a value of a record is a path with a `Content`."""
    kinds = {"path": str, "sha256": str, "size": int, "mtime_ns": int, "ctime_ns": int}
    return isinstance(value, dict) and all(
        isinstance(value.get(key), kind) for key, kind in kinds.items()
    )


def of_entry(entry: Mapping[str, Any]) -> Content:
    """The `Content` in an entry of a record."""
    return Content(*(entry[name] for name in Content._fields))


def unchanged(path: Path, was: Content, verify: bool = False) -> bool | None:
    """Whether a file holds what it held; None where it is gone or cannot be read.

    The hash decides where times differ and, with `verify`, always.
    """
    try:
        stat = path.stat()
        if stat.st_size != was.size:
            return False
        if not verify and (stat.st_mtime_ns, stat.st_ctime_ns) == (was.mtime_ns, was.ctime_ns):
            return True
        return (_hash(path, stat.st_size) if verify else sha256(path)) == was.sha256
    except OSError:
        return None
