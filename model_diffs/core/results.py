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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core import folders
from model_diffs.core.errors import BadInput
from model_diffs.core.provenance import process_facts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RECORD = "run.json"

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
    committed: list[bool] = field(default_factory=list, kw_only=True, compare=False, repr=False)
    """Not empty once this process wrote the folder."""


class State(NamedTuple):
    """Whether a planned run is done: `complete`, `stale` or `missing`, and why."""

    status: str
    reason: str


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def read_record(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a folder; None where there is none or it cannot be read."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _moved(folder: Path, record: Mapping[str, Any], old: str, new: str) -> bool:
    """Whether `new` is the folder `old` at another place: every file read there, unchanged."""
    parent = os.path.abspath(folder.parent)
    inside = Path(os.path.abspath(old))
    found = False
    for entry in record.get("inputs", []):
        path = Path(os.path.normpath(f"{parent}/{entry['path']}"))
        if path.is_relative_to(inside):
            try:
                there = (Path(new) / path.relative_to(inside)).stat()
            except OSError:
                return False
            if (there.st_mtime_ns, there.st_size) != (entry["mtime_ns"], entry["size"]):
                return False
            found = True
    return found


def _changed_model(planned: PlannedRun, record: Mapping[str, Any]) -> str:
    for key in ("model_a", "model_b", "model"):
        old, new = record.get("arguments", {}).get(key), planned.arguments.get(key)
        if not (isinstance(old, str) and isinstance(new, str)):
            continue
        same = old == new or os.path.realpath(old) == os.path.realpath(new)
        if not same and not _moved(planned.folder, record, old, new):
            return f"it is of {old}, not of {new}"
    return ""


def _changed_argument(planned: PlannedRun, record: Mapping[str, Any]) -> str:
    old, new = record.get("arguments", {}), _jsonable(planned.arguments)
    for key in sorted({*old, *new}):
        if key.startswith("model") and key in old and key in new:
            continue  # see _changed_model: one folder may be spelled in two ways, or have moved
        if old.get(key) != new.get(key):
            flag = "--" + key.replace("_", "-")
            return f"{flag} was {old.get(key)}, is {new.get(key)}"
    return ""


def _changed_file(folder: Path, record: Mapping[str, Any]) -> str:
    for name in record.get("outputs", []):
        if not (folder / name).exists():
            return f"{name} is gone"
    for entry in record.get("inputs", []):
        path = Path(os.path.normpath(folder.parent / entry["path"]))
        try:
            found = path.stat()
        except OSError:
            continue  # what is gone cannot be newer: the result still stands
        if found.st_mtime_ns != entry["mtime_ns"] or found.st_size != entry["size"]:
            return f"{os.path.relpath(path)} changed"
    return ""


def state(planned: PlannedRun) -> State:
    """Compare a planned run with what its folder records.

    Complete: `run.json` is there, the arguments are equal, the files that were written are there,
    and no file that was read has changed since. The result of another model of the same name is
    stale.
    """
    if not (planned.folder / RECORD).exists():
        return State("missing", "")
    record = read_record(planned.folder)
    if record is None:
        return State("stale", f"{RECORD} cannot be read")
    reason = _changed_model(planned, record) or _changed_argument(planned, record)
    reason = reason or _changed_file(planned.folder, record)
    return State("stale", reason) if reason else State("complete", "")


def check_replaceable(folder: Path) -> None:
    """Raise BadInput where a result would take the place of what no run of it wrote.

    A result replaces its folder as a whole: what a hand or another run put there would be lost.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file, where a folder of results would go: move it")
    if not folder.is_dir() or next(folder.iterdir(), None) is None:
        return
    if not (folder / RECORD).is_file():
        raise BadInput(
            f"{folder} holds files but no {RECORD}, and a result would replace them: name a new "
            "folder, or remove that one"
        )
    own = (read_record(folder) or {}).get("outputs", [])
    for record in sorted(folder.glob(f"*/**/{RECORD}")):
        if record.relative_to(folder).as_posix() not in own:
            raise BadInput(
                f"{folder} holds another result, {record.parent.relative_to(folder)}, which this "
                "one would replace: name another folder"
            )


def pending(planned_runs: Iterable[PlannedRun], force: bool = False) -> list[PlannedRun]:
    """Those planned runs that are not complete; one line for each that is skipped or stale."""
    todo = []
    for planned in planned_runs:
        found = state(planned)
        if found.status != "complete" or force:
            check_replaceable(planned.folder)
        if found.status == "complete" and not force:
            print(f"{planned.folder}: complete, skipped (--force reruns it)")
            continue
        if found.status == "stale":
            print(f"{planned.folder}: stale, {found.reason}")
        todo.append(planned)
    return todo


def read_table(path: Path, hint: str, columns: Iterable[str] = ()) -> "pd.DataFrame":
    """A CSV as a DataFrame. Raises BadInput, with `hint`, where it is missing, or has no row or not
    these columns.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such table; {hint}") from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a table; {hint}") from error
    if table.empty:
        raise BadInput(f"{path}: no row in it; {hint}")
    for column in columns:
        if column not in table:
            raise BadInput(f"{path} has no column {column}; {hint}")
    return table


# ── writing ───────────────────────────────────────────────────────────────────────────────────────

INVOCATION = "MODEL_DIFFS_INVOCATION"
"""Set by the pipeline: which of its invocations this process belongs to."""
FAILED = ".failed.json"


def failure_record(folder: Path) -> Path:
    """Where a failure to make `folder` is noted: beside it, since it may hold an older result."""
    return folder.with_name(folder.name + FAILED)


def read_failure(folder: Path) -> dict[str, Any]:
    """What is noted of the last failure to make `folder`; empty where nothing readable is."""
    try:
        found = json.loads(failure_record(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def note_failure(planned_runs: Iterable[PlannedRun], reason: str) -> None:
    """Note that a step of a pipeline left these folders unmade. By hand, nothing is written."""
    invocation = os.environ.get(INVOCATION)
    for planned in planned_runs if invocation and is_main_process() else ():
        content = {"invocation": invocation, "reason": reason, "command": " ".join(sys.argv)}
        planned.folder.parent.mkdir(parents=True, exist_ok=True)
        failure_record(planned.folder).write_text(json.dumps(content, indent=2) + "\n")


# Called with the folder and its record after each commit (tracking registers itself here).
after_commit: list[Callable[[Path, dict[str, Any]], None]] = []


def is_main_process() -> bool:
    """Whether this process writes: the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@dataclass
class Run:
    """An open result folder. Files go to `path`; `facts` end in run.json."""

    planned: PlannedRun
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[Path, tuple[int, int]] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def reads(self, *paths: Path | str) -> None:
        """Note files that the result depends on, as they are now; a later change makes it stale."""
        for path in paths:
            absolute = Path(os.path.abspath(path))
            self.inputs.setdefault(absolute, _stat(absolute))

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

        if isinstance(rows, pd.DataFrame):
            frame = rows
        else:
            for row in rows:
                values = row._asdict() if hasattr(row, "_asdict") else row
                for column, value in values.items():
                    if isinstance(value, float) and math.isnan(value):
                        raise ValueError(f"NaN in {name}.csv, column {column}: {values}")
            frame = (
                pd.DataFrame(rows) if columns is None else pd.DataFrame(rows, columns=[*columns])
            )
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
        outputs = sorted(
            p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()
        )
        parent = os.path.abspath(self.planned.folder.parent)
        inputs = [
            {"path": os.path.relpath(path, parent), "mtime_ns": mtime, "size": size}
            for path, (mtime, size) in sorted(self.inputs.items())
        ]
        record = {
            "label": self.planned.label,
            "command": " ".join(sys.argv),
            "arguments": _jsonable(self.planned.arguments),
            **_jsonable(self.facts),
            **process_facts(),
            "seconds": round(time.perf_counter() - self.started, 3),
            "outputs": outputs,
            "inputs": inputs,
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
    if is_main_process():
        check_replaceable(planned.folder)
        path = folders.working_folder(planned.folder)
    else:
        path = Path(tempfile.mkdtemp(prefix="model_diffs_"))
    run = Run(planned, path)
    try:
        yield run
        if is_main_process():
            record = run._commit()
            for publish in after_commit:
                publish(planned.folder, record)
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
