"""The tables under an outroot, checked as they are read: what is not as it should be is not used.

A number on the page is either in a table or absent with a reason. A folder without its record, a
column that is gone, an empty or a repeated cell never become a number.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_diffs.core import results

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


class Absent(Exception):
    """A value that cannot be had, and why. The message is said after 'step 8, for rmu:'."""

    def __init__(self, reason: str, defect: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.defect = defect
        """Something is wrong, or older than this page; not just undefined or not run."""


NOT_RUN = "not run"


class Tables:
    """Tables and records under one outroot, each read once."""

    def __init__(self, outroot: Path) -> None:
        self.outroot = outroot
        self._tables: dict[str, pd.DataFrame] = {}
        self._checked: dict[tuple[object, ...], pd.DataFrame] = {}
        self._documents: dict[str, dict[str, Any]] = {}

    def document(self, path: str) -> Mapping[str, Any]:
        """A JSON file by its path under the outroot, such as a folder's run.json or summary.json.

        Raises Absent where it is not there or is no JSON object.
        """
        if path not in self._documents:
            try:
                found = json.loads((self.outroot / path).read_text(encoding="utf-8"))
            except (FileNotFoundError, NotADirectoryError):
                raise Absent(NOT_RUN) from None
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise Absent(f"failed, {path} cannot be read", defect=True) from None
            if not isinstance(found, dict):
                raise Absent(f"failed, {path} is no JSON object", defect=True)
            self._documents[path] = found
        return self._documents[path]

    def record(self, folder: str) -> Mapping[str, Any]:
        """The run.json of a result; without one a folder is not a result."""
        return self.document(f"{folder}/{results.RECORD}")

    def table(
        self,
        path: str,
        numbers: Sequence[str],
        names: Sequence[str] = (),
        key: Sequence[str] = (),
        empty: Sequence[str] = (),
    ) -> "pd.DataFrame":
        """The columns `numbers` and `names` of a CSV, `path` relative to the outroot.

        Cells of `names` are text. Every other cell must hold a finite number, those of columns in
        `empty` may be empty (NaN here). `key`: columns that no two rows share. Raises Absent. The
        table is shared: not to be written to.
        """
        asked = (path, *numbers, "", *names, "", *key, "", *empty)
        if asked not in self._checked:
            self._checked[asked] = self._check(path, numbers, names, key, empty)
        return self._checked[asked]

    def _check(
        self,
        path: str,
        numbers: Sequence[str],
        names: Sequence[str],
        key: Sequence[str],
        empty: Sequence[str],
    ) -> "pd.DataFrame":
        self.record(path.rsplit("/", 1)[0])
        found = self._read(path)
        lacking = [c for c in (*numbers, *names) if c not in found.columns]
        if lacking:
            raise Absent(f"failed, {path} has no column {lacking[0]}", defect=True)
        found = found[[*names, *numbers]].copy()
        for column in numbers:
            found[column] = self._numbers(path, found[column], column in empty)
        if names and found[[*names]].isna().any().any():
            raise Absent(f"failed, {path} has an empty cell in {', '.join(names)}", defect=True)
        if key and found.duplicated([*key]).any():
            raise Absent(f"failed, {path} has two rows of one {', '.join(key)}", defect=True)
        return found

    def _read(self, path: str) -> "pd.DataFrame":
        import pandas as pd

        if path not in self._tables:
            try:
                self._tables[path] = pd.read_csv(self.outroot / path)
            except FileNotFoundError:
                raise Absent(
                    f"{path} is not there: run the step with --force for conclusions from it",
                    defect=True,
                ) from None
            except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError):
                raise Absent(f"failed, {path} is not a table", defect=True) from None
        return self._tables[path]

    def _numbers(self, path: str, cells: "pd.Series", may_be_empty: bool) -> "pd.Series":
        import pandas as pd

        if cells.dtype.kind in "if" and np.isfinite(cells.to_numpy()).all():
            return cells.astype(float)
        numbers = pd.to_numeric(cells, errors="coerce").astype(float)
        # What reads as NaN though something stands there is not a number, nor is infinity.
        wrong = (numbers.isna() & cells.notna()) | np.isinf(numbers)
        if not may_be_empty:
            wrong |= numbers.isna()
        if wrong.any():
            row = int(np.flatnonzero(wrong.to_numpy())[0]) + 2
            raise Absent(
                f"failed, {path}, line {row}: no number in column {cells.name}", defect=True
            )
        return numbers


def states(path: str, layers: Iterable[float]) -> list[int]:
    """The hidden states 0, 1, …, N of a table; Absent where one is left out or only 0 is there."""
    found = sorted({int(layer) for layer in layers})
    if len(found) < 2 or found != list(range(len(found))):
        raise Absent(f"failed, {path} has not every hidden state", defect=True)
    return found


def identity(*parts: Any) -> str:
    """A digest of what was sampled: resamples pair only where it is the same."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
