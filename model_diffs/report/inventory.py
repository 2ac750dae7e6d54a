"""Which step left a result for which comparison, and in which state it is. Light at import.

A record is checked here, where it is read: what is not of the expected type is not recorded.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core import results
from model_diffs.core.results import PlannedRun
from model_diffs.core.step import Script, Step
from model_diffs.report.signature import Comparison, Missing

FOLDER = "report"
"""The report's own folder, which is no result to be reported."""


class Result(NamedTuple):
    """The folder of one step for one comparison, model or study, and its state."""

    script: Script
    owner: str
    """Label of the comparison or model; empty for the study."""
    comparison: str
    """Label of the comparison that it belongs to; empty where it serves all."""
    folder: Path
    status: str
    """`complete`, `stale`, `missing` or `failed`."""
    reason: str
    record: Mapping[str, Any]
    """Its facts (see `facts`); empty where it cannot be read."""

    @property
    def step(self) -> Step:
        return self.script.step

    @property
    def there(self) -> bool:
        """Whether it can be read."""
        return self.status in ("complete", "stale")


# ── records ───────────────────────────────────────────────────────────────────────────────────────


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _of(kind: Any, value: Any) -> Any:
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def _text_facts(record: Mapping[str, Any], split: str) -> dict[str, Any]:
    read = _mapping(_mapping(record.get("texts")).get(split))
    left_out = _mapping(_mapping(record.get("left_out")).get(split))
    number = int | float
    return {
        "split": split,
        "path": _of(str, read.get("path")),
        "texts": _of(number, read.get("texts")),
        "tokens": _of(number, _mapping(record.get("tokens")).get(split)),
        "texts_left_out": _of(number, left_out.get("documents")),
        "tokens_left_out": _of(number, left_out.get("tokens")),
        "sha256": _of(str, read.get("sha256")),
    }


def facts(record: Any) -> dict[str, Any] | None:
    """A run.json with every value of the type that runs write, else None.

    None where the record has not the shape of a run: its arguments, files or inputs.
    """
    if not isinstance(record, dict):
        return None
    files, inputs = record.get("outputs", []), record.get("inputs", [])
    if not (
        isinstance(record.get("arguments", {}), dict)
        and isinstance(files, list)
        and all(isinstance(name, str) for name in files)
        and isinstance(inputs, list)
        and all(isinstance(one, dict) and {*one} >= {"path", "mtime_ns", "size"} for one in inputs)
        and all(isinstance(one["path"], str) for one in inputs)
    ):
        return None
    words = ("device", "device_name", "dtype", "finished", "python", "git_commit", "command")
    return {
        "arguments": record.get("arguments", {}),
        "outputs": files,
        "models": {
            name: {
                "bytes": _of(int | float, _mapping(one).get("bytes")),
                "config_sha256": _of(str, _mapping(one).get("config_sha256")),
            }
            for name, one in _mapping(record.get("models")).items()
        },
        "texts": [_text_facts(record, split) for split in _mapping(record.get("texts"))],
        "seconds": _of(int | float, record.get("seconds")),
        "versions": _mapping(record.get("packages")),
        **{word: _of(str, record.get(word)) for word in words},
    }


# ── states ────────────────────────────────────────────────────────────────────────────────────────


def _failure(folder: Path) -> str:
    """Why a step of the pipeline failed to make this folder, as noted beside it; else empty."""
    try:
        content = json.loads(results.failure_record(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        content = {}
    reason = _mapping(content).get("reason")
    return f"failed, {str(reason)[:200]}" if reason else "failed"


def _state(folder: Path, owner: str) -> tuple[str, str, dict[str, Any]]:
    """Status, reason and facts of a folder."""
    failure = _failure(folder)
    if not (folder / results.RECORD).exists():
        return ("failed", failure, {}) if failure else ("missing", "not run", {})
    record = results.read_record(folder)
    known = facts(record)
    if record is None or known is None:
        return "failed", f"failed, its {results.RECORD} cannot be read", {}
    if failure:
        return "stale", f"{failure}; an earlier result is shown", known
    # Against its own arguments: only files can have changed.
    status, reason = results.state(PlannedRun(folder, owner, known["arguments"]))
    if status == "stale" and reason.endswith(" is gone"):
        return "failed", f"failed, {reason}", known
    if status == "stale":
        # Worded relative to the working folder; the page is read from elsewhere.
        here = os.path.relpath(folder.parent.parent) + os.sep
        reason = reason.removeprefix(here).removeprefix(f"{owner}/")
        reason = f"stale, {reason} since; the earlier result is shown"
    return status, reason, known


def _places(
    outroot: Path, comparisons: Sequence[Comparison], step: Step
) -> list[tuple[str, str, Path]]:
    """Owner, comparison and folder of everything that a step leaves for these comparisons."""
    base = comparisons[0].base
    if step.scope == "comparison":
        return [(c.label, c.label, outroot / c.label / step.folder) for c in comparisons]
    study = [("", "", outroot / step.folder.format(base=base))]
    if step.scope == "study":
        return study
    models = [(base, "", outroot / base / step.folder)]
    models += [(c.changed, c.label, outroot / c.changed / step.folder) for c in comparisons]
    return models + (study if step.summary else [])


def take_inventory(
    outroot: Path, comparisons: Sequence[Comparison], scripts: Iterable[Script]
) -> list[Result]:
    """The state of every step's result for these comparisons, in the order of the steps."""
    found = []
    for script in scripts if comparisons else ():
        step = script.step
        if step.scope == "other" or step.folder == FOLDER:
            continue
        made = [
            Result(script, owner, label, folder, *_state(folder, owner))
            for owner, label, folder in _places(outroot, comparisons, step)
        ]
        if not (step.optional and all(one.status == "missing" for one in made)):
            found += made
    return found


def missing_of(inventory: Iterable[Result]) -> list[Missing]:
    """What is missing, stale or failed, for the list on the page."""
    found = []
    for one in inventory:
        if one.status != "complete":
            # Of the models, the base serves all comparisons: its line has to name it.
            whose = f"{one.owner}: " if one.owner and not one.comparison else ""
            reason = whose + one.reason
            found.append(Missing(one.step.number, one.script.name, one.comparison, reason))
    return found


def files_of(inventory: Iterable[Result], *endings: str) -> list[Path]:
    """The files with these endings that the readable results say they wrote."""
    found = set()
    for one in inventory:
        for name in one.record["outputs"] if one.there else ():
            inside = os.path.normpath(name)
            if name.endswith(endings) and not inside.startswith(("..", os.sep)):
                found.add(one.folder / inside)
    return sorted(found)


def fingerprint(outroot: Path, inventory: Iterable[Result]) -> str:
    """Which results there are and in which state, in a few letters: a new one changes it."""
    # Why a result is stale is worded relative to the working folder: no difference in the result.
    lines = [
        f"{one.folder.relative_to(outroot).as_posix()}\t{one.status}\t"
        + (one.reason if one.status == "failed" else "")
        for one in inventory
    ]
    there = sum(line.split("\t")[1] in ("complete", "stale") for line in lines)
    digest = sha256("\n".join(lines).encode()).hexdigest()
    return f"{there} of {len(lines)} ({digest[:8]})"
