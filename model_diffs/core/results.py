"""Result folders: their names, whether they are complete, how they are written, what they record.

A step writes into a hidden sibling of its folder. When everything is there, `run.json` is written
last and the sibling is renamed into place, so a killed run leaves nothing that looks complete.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core import content, folders, options, tracking
from model_diffs.core.content import Content
from model_diffs.core.provenance import process_facts
from model_diffs.core.records import RECORD as RECORD
from model_diffs.core.records import check_replaceable
from model_diffs.core.records import read_record as read_record

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# ── planned runs and their state ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PlannedRun:
    """One folder that a script is about to fill."""

    folder: Path
    """Where the results go."""
    label: str
    """What is compared or measured, for messages."""
    arguments: Mapping[str, Any]
    """Every argument that decides the result, JSON-able; compared with the record of an old run."""
    model_a: str = ""
    """The base model, or the only one."""
    model_b: str = ""
    """The changed model of a comparison."""
    script: str = field(default="", kw_only=True, compare=False)
    """File name of the step's script: no other one may replace the folder."""
    version: int = field(default=1, kw_only=True, compare=False)
    """Of the step's numbers: a result of another version is stale."""
    reads: tuple[str, ...] = field(default=(), kw_only=True, compare=False)
    """Files and folders that options name, which a result must not replace."""
    named: bool = field(default=False, kw_only=True, compare=False)
    """The folder was named by --outdir."""
    committed: list[bool] = field(default_factory=list, kw_only=True, compare=False, repr=False)
    """Not empty once this process wrote the folder."""

    def check_replaceable(self) -> None:
        """Raise BadInput where this result would destroy what is no earlier one of its kind."""
        check_replaceable(self.folder, self.script, self.reads, self.named)


class State(NamedTuple):
    """Whether a planned run is done: `complete`, `stale` or `missing`, and why."""

    status: str
    reason: str


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def _inputs(folder: Path, record: Mapping[str, Any]) -> Iterator[tuple[Path, Content]]:
    """The files that a result was made from, as they were."""
    for entry in record["inputs"]:
        path = Path(os.path.abspath(folder.parent / entry["path"]))
        yield path, content.of_entry(entry)


def _moved(folder: Path, record: Mapping[str, Any], old: str, new: str) -> bool:
    """Whether `new` is the folder `old` at another place: every file read there, unchanged."""
    inside = Path(os.path.abspath(old))
    found = [
        (Path(new) / path.relative_to(inside), was)
        for path, was in _inputs(folder, record)
        if path.is_relative_to(inside)
    ]
    # A step that only draws records no models: its tables say whether anything changed.
    same = bool(found) or not record.get("models")
    return same and all(content.unchanged(path, was) for path, was in found)


def _changed_argument(planned: PlannedRun, record: Mapping[str, Any]) -> str:
    old, new = record["arguments"], _jsonable(planned.arguments)
    for key in sorted({*old, *new}, key=lambda key: (not key.startswith("model"), key)):
        was, now = old.get(key), new.get(key)
        if key.startswith("model") and isinstance(was, str) and isinstance(now, str):
            same = os.path.realpath(was) == os.path.realpath(now)  # one folder in two spellings
            if not same and not _moved(planned.folder, record, was, now):
                return f"it is of {was}, not of {now}"
        elif was != now:
            return f"{options.flag(key)} was {was}, is {now}"
    return ""


def _changed_file(folder: Path, record: Mapping[str, Any], verify: bool) -> str:
    for entry in record["outputs"]:
        kept = content.unchanged(folder / entry["path"], content.of_entry(entry), verify)
        if not kept:
            return f"{entry['path']} {'is gone' if kept is None else 'is not as it was written'}"
    for path, was in _inputs(folder, record):
        # What is gone cannot be newer: the result still stands.
        if content.unchanged(path, was, verify) is False:
            return f"{os.path.relpath(path)} changed"
    return ""


VERIFY = "MODEL_DIFFS_VERIFY"
"""Set by `pipeline.sh --verify`: hashes are checked even where size and times are unchanged."""


def state(planned: PlannedRun, verify: bool = False) -> State:
    """Compare a planned run with what its folder records.

    Complete: `run.json` is there, arguments and the step's version are equal, and the files that
    were written and read hold what they held. The result of another model of the same name is
    stale.
    """
    if not (planned.folder / RECORD).exists():
        return State("missing", "")
    record = read_record(planned.folder)
    if record is None:
        return State("stale", f"{RECORD} cannot be read, or is of an earlier version")
    version = record.get("version", 1)
    if version != planned.version:
        return State("stale", f"it is of version {version} of the step, not {planned.version}")
    verify = verify or os.environ.get(VERIFY) == "1"
    reason = _changed_argument(planned, record) or _changed_file(planned.folder, record, verify)
    return State("stale", reason) if reason else State("complete", "")


def pending(planned_runs: Iterable[PlannedRun], force: bool = False) -> list[PlannedRun]:
    """Those planned runs that are not complete; one line for each that is skipped or stale."""
    todo = []
    for planned in planned_runs:
        status, reason = state(planned)
        if status == "complete" and not force:
            print(f"{planned.folder}: complete, skipped (--force reruns it)")
            continue
        planned.check_replaceable()
        if status == "stale":
            print(f"{planned.folder}: stale, {reason}")
        todo.append(planned)
    return todo


# ── writing ───────────────────────────────────────────────────────────────────────────────────────

INVOCATION = "MODEL_DIFFS_INVOCATION"
"""Set by the pipeline: which of its invocations this process belongs to."""


def failure_record(folder: Path) -> Path:
    """Where a failure to make `folder` is noted: beside it, since it may hold an older result."""
    return folder.with_name(f"{folder.name}.failed.json")


def read_failure(folder: Path) -> dict[str, Any]:
    """What is noted of the last failure to make `folder`; empty where nothing readable is."""
    found = folders.read_json(failure_record(folder))
    return found if isinstance(found, dict) else {}


def note_failure(planned_runs: Iterable[PlannedRun], reason: str) -> None:
    """Note that a step of a pipeline left these folders unmade. By hand, nothing is written."""
    invocation = os.environ.get(INVOCATION)
    for planned in planned_runs if invocation and is_main_process() else ():
        content = {"invocation": invocation, "reason": reason, "command": " ".join(sys.argv)}
        planned.folder.parent.mkdir(parents=True, exist_ok=True)
        failure_record(planned.folder).write_text(json.dumps(content, indent=2) + "\n")


def is_main_process() -> bool:
    """Whether this process writes: the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


@dataclass
class Run:
    """An open result folder. Files go to `path`; `facts` end in run.json."""

    planned: PlannedRun
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[Path, Content] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def reads(self, *paths: Path | str) -> None:
        """Note files that the result depends on, as they are now; a later change makes it stale."""
        for path in paths:
            absolute = Path(os.path.abspath(path))
            if absolute not in self.inputs:
                self.inputs[absolute] = content.content(absolute)

    def record(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self.facts.update(facts)

    def table(
        self, name: str, rows: "Sequence[Any] | pd.DataFrame", columns: Sequence[str] | None = None
    ) -> "pd.DataFrame":
        """Write rows (named tuples or dictionaries) as `name`.csv and return them as a DataFrame.

        None becomes an empty cell. A NaN in rows is an error: what is undefined is None.
        """
        import pandas as pd

        for row in () if isinstance(rows, pd.DataFrame) else rows:
            values = row._asdict() if hasattr(row, "_asdict") else row
            for column, value in values.items():
                if isinstance(value, float) and math.isnan(value):
                    raise ValueError(f"NaN in {name}.csv, column {column}: {values}")
        frame = pd.DataFrame(rows, columns=None if columns is None else [*columns])
        frame.to_csv(self.path / f"{name}.csv", index=False, lineterminator="\n")
        return frame

    def figure(self, name: str, figure: "Figure") -> None:
        """Write a figure as `name`.png, or in the format of the run's --format, and close it."""
        import matplotlib.pyplot as plt

        extension = self.planned.arguments.get("format", "png")
        # Without a date the same figure is the same bytes.
        undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(extension)
        figure.savefig(self.path / f"{name}.{extension}", metadata=undated)
        plt.close(figure)

    def page(self, name: str, table: "pd.DataFrame") -> None:
        """Write a table as `name`.html, its cells escaped."""
        html = table.to_html(index=False, border=0, escape=True)
        head = f'<!doctype html><meta charset="utf-8"><title>{name}</title>'
        (self.path / f"{name}.html").write_text(f"{head}\n{html}\n", encoding="utf-8")

    def document(self, name: str, content: Any) -> None:
        """Write `content` as `name`.json. NaN and Inf are errors."""
        text = json.dumps(content, indent=2, allow_nan=False, default=str)
        (self.path / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    def _commit(self) -> dict[str, Any]:
        written = sorted(path for path in self.path.rglob("*") if path.is_file())
        parent = os.path.abspath(self.planned.folder.parent)
        record = {
            "label": self.planned.label,
            "script": self.planned.script,
            "version": self.planned.version,
            "command": " ".join(sys.argv),
            "arguments": _jsonable(self.planned.arguments),
            **_jsonable(self.facts),
            **process_facts(),
            "seconds": round(time.perf_counter() - self.started, 3),
            "outputs": [
                {"path": path.relative_to(self.path).as_posix(), **content.content(path)._asdict()}
                for path in written
            ],
            "inputs": [
                {"path": os.path.relpath(path, parent), **was._asdict()}
                for path, was in sorted(self.inputs.items())
            ],
        }
        with (self.path / RECORD).open("w", encoding="utf-8") as handle:
            json.dump(record, handle, indent=2)
            handle.flush()
            os.fsync(handle.fileno())
        folders.replace(self.path, self.planned.folder)
        failure_record(self.planned.folder).unlink(missing_ok=True)
        self.planned.committed.append(True)
        return record


@contextmanager
def open_run(planned: PlannedRun) -> Iterator[Run]:
    """Open the folder of a planned run for writing; commit it when the block ends without error.

    On an error, Ctrl-C included, what was written is removed and earlier results stay. Processes
    other than the first one write to a temporary folder that is thrown away.
    """
    path = None
    if is_main_process():
        planned.check_replaceable()
        path = folders.working_folder(planned.folder)
    run = Run(planned, path or Path(tempfile.mkdtemp(prefix="model_diffs_")))
    try:
        yield run
        if is_main_process():
            tracking.publish(planned.folder, run._commit())
    finally:
        tracking.give_up(planned.folder)
        shutil.rmtree(run.path, ignore_errors=True)
