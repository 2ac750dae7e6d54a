"""Tables that steps left under an outroot, checked as they are read.

A number is in a table, or it is absent with a reason: a folder without its record, a missing
column, an empty or a repeated cell never become a number. pandas is imported lazily.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core import results
from model_diffs.core.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not run"
# What pandas raises for bytes that are no table: its own errors and UnicodeDecodeError among them.
NOT_A_TABLE = (ValueError, OverflowError)


def read_table(
    path: Path,
    hint: str,
    numbers: Iterable[str] = (),
    empty: Iterable[str] = (),
    names: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> "pd.DataFrame":
    """A CSV as a DataFrame. Raises BadInput, with `hint`, where it is missing or not as described.

    It has a row, and the columns `numbers` (finite), `empty` (finite or empty; so are the ends
    `_low` and `_high` of an interval, where they stand) and `names` (text: one of the values, or
    any where there are none).
    """
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput(f"{path}: no such table; {hint}") from error
    except NOT_A_TABLE as error:
        raise BadInput(f"{path}: not a table; {hint}") from error
    if table.empty:
        raise BadInput(f"{path}: no row in it; {hint}")
    numbers, empty = [*numbers], [*empty]
    for column in (*numbers, *empty, *names):
        if column not in table:
            raise BadInput(f"{path} has no column {column}; {hint}")
    ends = [f"{column}_{end}" for column in (*numbers, *empty) for end in ("low", "high")]
    empty += [end for end in ends if end in table]
    for column in (*numbers, *empty):
        table[column], wrong = _as_numbers(table[column], column in empty)
        if wrong:
            raise BadInput(f"{path}, line {wrong}: no number in column {column}; {hint}")
    for column, known in names.items():
        strange = set(table[column]) - set(known or table[column])
        if table[column].isna().any() or strange:
            which = f"{min(map(str, strange))!r}" if strange else "an empty cell"
            raise BadInput(f"{path}: {which} in column {column}; {hint}")
    return table


def _as_numbers(cells: "pd.Series", may_be_empty: bool) -> "tuple[pd.Series, int]":
    """Cells as numbers, and the line of the first that is none; 0 where all are."""
    import numpy as np
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce").astype(float)
    # Words and infinities are no numbers; NaN is an empty cell.
    wrong = (numbers.isna() & cells.notna()) | np.isinf(numbers)
    if not may_be_empty:
        wrong |= numbers.isna()
    line = int(np.flatnonzero(wrong.to_numpy())[0]) + 2 if wrong.any() else 0
    whole = pd.api.types.is_integer_dtype(cells)
    return (cells if whole else numbers), line


class Absent(Exception):
    """A number that cannot be had, and why, worded to follow 'step 8, rmu:'."""

    def __init__(self, reason: str, defect: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.defect = defect
        """A result is damaged or outdated, rather than undefined or not run."""


class Source(NamedTuple):
    """Where a number can be looked up."""

    path: str
    """Of the table, relative to the outroot, with forward slashes."""
    column: str
    """Of the value; its interval is in `<column>_low` and `_high`."""
    rows: str
    """Which rows and how they are reduced: `layer=3, split=forget` or `mean over layer 1-4`."""

    def __str__(self) -> str:
        return f"{self.path}: {self.column}" + (f", {self.rows}" if self.rows else "")


class Tables:
    """Tables and records under one outroot; each file is read once."""

    def __init__(self, outroot: Path) -> None:
        self.outroot = outroot
        self._tables: dict[str, pd.DataFrame] = {}
        self._checked: dict[tuple[tuple[str, ...], ...], pd.DataFrame] = {}
        self._records: dict[str, dict[str, Any]] = {}

    def record(self, folder: str) -> Mapping[str, Any]:
        """The run.json of a result folder. Raises Absent: without one it is no result."""
        if folder not in self._records:
            path = self.outroot / folder / results.RECORD
            found = results.read_record(path.parent)
            if found is None and not path.exists():
                raise Absent(NOT_RUN)
            if found is None:
                raise Absent(f"failed, {folder}/{results.RECORD} cannot be read", defect=True)
            self._records[folder] = found
        return self._records[folder]

    def arguments(self, folder: str) -> Mapping[str, Any]:
        """The options that a result was made with."""
        return self.record(folder)["arguments"]

    def columns(self, path: str) -> list[str]:
        """Names of the columns of a CSV, `path` relative to the outroot. Raises Absent."""
        return [*self._read(path).columns]

    def table(
        self,
        path: str,
        numbers: Iterable[str],
        names: Iterable[str] = (),
        key: Sequence[str] = (),
        empty: Sequence[str] = (),
    ) -> "pd.DataFrame":
        """The columns `names` (text) and `numbers` (finite) of a CSV.

        Columns in `empty` may have empty cells (NaN here); no two rows share `key`. Raises Absent.
        The table is shared: not to be written to.
        """
        names, numbers = list(dict.fromkeys(names)), list(dict.fromkeys(numbers))
        asked = ((path,), (*numbers,), (*names,), (*key,), (*empty,))
        if asked not in self._checked:
            self._checked[asked] = self._check(path, numbers, names, key, empty)
        return self._checked[asked]

    def _check(
        self,
        path: str,
        numbers: list[str],
        names: list[str],
        key: Sequence[str],
        empty: Sequence[str],
    ) -> "pd.DataFrame":
        found = self._read(path)
        lacking = [c for c in (*numbers, *names) if c not in found.columns]
        if lacking:
            raise Absent(f"failed, {path} has no column {lacking[0]}", defect=True)
        found = found[[*names, *numbers]].copy()
        if found.empty:
            raise Absent(f"failed, {path} has no row", defect=True)
        for column in numbers:
            found[column] = self._numbers(path, found[column], column in empty)
        if found[names].isna().any(axis=None):
            raise Absent(f"failed, {path} has an empty cell in {', '.join(names)}", defect=True)
        if key and found.duplicated([*key]).any():
            raise Absent(f"failed, {path} has two rows of one {', '.join(key)}", defect=True)
        return found

    def _read(self, path: str) -> "pd.DataFrame":
        import pandas as pd

        self.record(path.rsplit("/", 1)[0])
        if path not in self._tables:
            try:
                self._tables[path] = pd.read_csv(self.outroot / path)
            except FileNotFoundError:
                raise Absent(
                    f"{path} is not there: run the step with --force for conclusions from it",
                    defect=True,
                ) from None
            except NOT_A_TABLE:
                raise Absent(f"failed, {path} is not a table", defect=True) from None
        return self._tables[path]

    def _numbers(self, path: str, cells: "pd.Series", may_be_empty: bool) -> "pd.Series":
        numbers, wrong = _as_numbers(cells, may_be_empty)
        if wrong:
            raise Absent(
                f"failed, {path}, line {wrong}: no number in column {cells.name}", defect=True
            )
        return numbers.astype(float)


class Place(NamedTuple):
    """What a measure is read from: the result folder of one comparison or model."""

    tables: Tables
    folder: str
    """Of the step's results, relative to the outroot."""
    base: str
    """Label of the base model."""
    changed: str
    """Label of the changed model."""
    seed: int
    """Of the resamples."""

    def path(self, table: str) -> str:
        """Of a table of the step, relative to the outroot."""
        return f"{self.folder}/{table}.csv"


def identity(*parts: Any) -> str:
    """A digest of what was sampled: numbers are paired only where it is equal."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def texts_read(record: Mapping[str, Any], splits: Iterable[str]) -> list[list[str]]:
    """Split, SHA-256 and counted tokens of the texts that a result was measured on."""
    try:
        texts, tokens = record["texts"], record.get("tokens")
        known = [split for split in splits if split in texts] or sorted(texts)
        return [[s, str(texts[s]["sha256"]), str(tokens and tokens.get(s))] for s in known]
    except (KeyError, TypeError, AttributeError):
        raise Absent("failed, its run.json does not say on which texts", defect=True) from None


def questions_read(record: Mapping[str, Any]) -> list[str]:
    """SHA-256 of the file of questions: equal ids alone could be those of other questions."""
    name = Path(str(record["arguments"].get("questions"))).name
    return [one["sha256"] for one in record["inputs"] if Path(one["path"]).name == name]


THIRDS = ("early", "middle", "late")


def third_of(state: int, blocks: int) -> str:
    """The third of the depth that the middle of the block with output state 1, …, N is in."""
    return THIRDS[min(2, 3 * (2 * state - 1) // (2 * blocks))]


def choose_states(path: str, layers: "pd.Series", chosen: str) -> list[int]:
    """The chosen ones of the hidden states 0, 1, …, N of a table. Raises Absent."""
    found = sorted({int(layer) for layer in layers})
    blocks = len(found) - 1
    if blocks < 1 or found != list(range(blocks + 1)):
        raise Absent(f"failed, {path} has not every hidden state", defect=True)
    kept = {"states": found[1:], "inside": found[1:-1], "last": found[-1:]}.get(chosen)
    if kept is None:
        kept = [state for state in found[1:] if third_of(state, blocks) == chosen]
    if not kept:
        raise Absent(f"the model has {blocks} blocks: no state is {chosen}")
    return kept
