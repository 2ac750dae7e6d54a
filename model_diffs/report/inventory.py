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

NUMBER = int | float
TEXT = {"path": str, "texts": NUMBER, "sha256": str}
WORDS = ("device", "device_name", "dtype", "finished", "python", "git_commit", "command")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _of(kind: Any, value: Any) -> Any:
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def _texts(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for split, read in _mapping(record.get("texts")).items():
        left_out = _mapping(_mapping(record.get("left_out")).get(split))
        yield {
            "split": split,
            **{key: _of(kind, _mapping(read).get(key)) for key, kind in TEXT.items()},
            "tokens": _of(NUMBER, _mapping(record.get("tokens")).get(split)),
            "texts_left_out": _of(NUMBER, left_out.get("documents")),
            "tokens_left_out": _of(NUMBER, left_out.get("tokens")),
        }


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with every value of the type that runs write (else None in its place)."""
    identity = {"bytes": NUMBER, "config_sha256": str}
    return {
        "arguments": record["arguments"],
        "outputs": [entry["path"] for entry in record["outputs"]],
        "models": {
            name: {key: _of(kind, _mapping(one).get(key)) for key, kind in identity.items()}
            for name, one in _mapping(record.get("models")).items()
        },
        "texts": [*_texts(record)],
        "seconds": _of(NUMBER, record.get("seconds")),
        "versions": _mapping(record.get("packages")),
        **{word: _of(str, record.get(word)) for word in WORDS},
    }


def _failure(folder: Path) -> str:
    """Why a step of the pipeline failed to make this folder, as noted beside it; else empty."""
    note = results.failure_record(folder)
    if not note.is_file():
        return ""
    try:
        return f"failed, {str(json.loads(note.read_text(encoding='utf-8'))['reason'])[:200]}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "failed"


def _state(folder: Path, owner: str, version: int) -> tuple[str, str, dict[str, Any]]:
    """Status, reason and facts of a folder."""
    failure = _failure(folder)
    if not (folder / results.RECORD).exists():
        return ("failed", failure, {}) if failure else ("missing", "not run", {})
    record = results.read_record(folder)
    if record is None:
        return "failed", f"failed, its {results.RECORD} cannot be read", {}
    known = facts(record)
    if failure:
        return "stale", f"{failure}; an earlier result is shown", known
    # Against its own arguments: only files can have changed.
    own = PlannedRun(folder, owner, known["arguments"], version=version)
    status, reason = results.state(own)
    if status == "stale" and reason.endswith(" is gone"):
        return "failed", f"failed, {reason}", known
    if status == "stale":
        # Worded relative to the working folder; the page is read from elsewhere.
        here = os.path.relpath(folder.parent.parent) + os.sep
        reason = reason.removeprefix(here).removeprefix(f"{owner}/")
        reason = f"stale, {reason}; the earlier result is shown"
    return status, reason, known


def _places(comparisons: Sequence[Comparison], step: Step) -> list[tuple[str, str]]:
    """Owner and comparison of every folder that a step fills for these comparisons."""
    if step.scope == "comparison":
        return [(one.label, one.label) for one in comparisons]
    models = [(comparisons[0].base, ""), *((one.changed, one.label) for one in comparisons)]
    return models * (step.scope == "model") + [("", "")] * (step.summary or step.scope == "study")


def take_inventory(
    outroot: Path, comparisons: Sequence[Comparison], scripts: Iterable[Script]
) -> list[Result]:
    """The state of every step's result for these comparisons, in the order of the steps."""
    found = []
    for script in scripts if comparisons else ():
        step = script.step
        if step.scope == "other" or step.folder == FOLDER:
            continue
        made = []
        for owner, label in _places(comparisons, step):
            folder = outroot / owner / step.folder.format(base=comparisons[0].base)
            made.append(Result(script, owner, label, folder, *_state(folder, owner, step.version)))
        if not (step.optional and all(one.status == "missing" for one in made)):
            found += made
    return found


def missing_of(inventory: Iterable[Result]) -> list[Missing]:
    """What is missing, stale or failed, for the list on the page."""
    found = []
    for one in (one for one in inventory if one.status != "complete"):
        # Of the models, the base serves all comparisons: its line has to name it.
        whose = f"{one.owner}: " if one.owner and not one.comparison else ""
        at = one.step.number, one.script.name, one.comparison
        found.append(Missing(*at, whose + one.reason))
    return found


def files_of(inventory: Iterable[Result], *endings: str) -> list[Path]:
    """The files with these endings that the readable results say they wrote."""
    named = [
        (one.folder, os.path.normpath(name))
        for one in inventory
        for name in (one.record["outputs"] if one.there else ())
        if name.endswith(endings)
    ]
    return sorted({folder / n for folder, n in named if not n.startswith(("..", os.sep))})


def fingerprint(outroot: Path, inventory: Iterable[Result]) -> str:
    """Which results there are and in which state, in a few letters: a new one changes it."""
    # Why a result is stale is worded relative to the working folder: no difference in the result.
    states = [
        (str(one.folder.relative_to(outroot)), one.status, one.reason * (one.status == "failed"))
        for one in inventory
    ]
    there = sum(status in ("complete", "stale") for _, status, _ in states)
    return f"{there} of {len(states)} ({sha256(repr(states).encode()).hexdigest()[:8]})"
