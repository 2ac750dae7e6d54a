"""The record of a result folder, run.json: read, checked, and asked what may take its place.

A record is checked here, where it is read: arguments are a mapping, files have their hashes.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model_diffs.core import content
from model_diffs.core.errors import BadInput
from model_diffs.core.folders import read_json

RECORD = "run.json"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a folder; None where there is none, or none that a run has written."""
    found = read_json(folder / RECORD)
    if not isinstance(found, dict) or not isinstance(found.get("arguments"), dict):
        return None
    for entries in (found.get("inputs"), found.get("outputs")):
        if not isinstance(entries, list) or not all(map(content.is_entry, entries)):
            return None
    return found


def _written_by(folder: Path) -> str:
    """File name of the script that wrote a folder; empty where its record does not say."""
    found = read_json(folder / RECORD)
    if not isinstance(found, dict):
        return ""
    # Before scripts were recorded, the command was.
    words = str(found.get("script") or found.get("command") or "").split()
    return Path(words[0]).name if words else ""


def _check_apart(folder: Path, inputs: Iterable[str]) -> None:
    """Raise BadInput where a result would take the place of an input, or of a folder with one."""
    place = Path(os.path.realpath(folder))
    for name in inputs:
        given = Path(os.path.realpath(os.path.expanduser(name)))
        if place == given or place in given.parents:
            raise BadInput(f"{folder} would replace {name}, which this run reads: name another")


def check_replaceable(
    folder: Path, script: str = "", inputs: Iterable[str] = (), named: bool = False
) -> None:
    """Raise BadInput where a result would take the place of what the same script did not write.

    A result replaces its folder as a whole: what a hand or another script put there would be lost.
    `named`: the folder was named by hand, so that an unreadable record says nothing about it.
    """
    _check_apart(folder, inputs)
    if folder.is_file():
        raise BadInput(f"{folder} is a file, where a folder of results would go: move it")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / RECORD).is_file():
        raise BadInput(
            f"{folder} holds files but no {RECORD}, and a result would replace them: name a new "
            "folder, or remove that one"
        )
    writer = _written_by(folder)
    if script and writer != script and (writer or named):
        by = f"was written by {writer}" if writer else f"has a {RECORD} that cannot be read"
        raise BadInput(f"{folder} {by}, and a result would replace it: name another folder")
    own = {entry["path"] for entry in (read_record(folder) or {"outputs": []})["outputs"]}
    for record in sorted(folder.glob(f"*/**/{RECORD}")):
        if record.relative_to(folder).as_posix() not in own:
            raise BadInput(
                f"{folder} holds another result, {record.parent.relative_to(folder)}, which this "
                "one would replace: name another folder"
            )
