"""Tables of one comparison, planted in a folder, and measures read from them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model_diffs.core.measure import Measure
from model_diffs.core.tables import Absent, Place, Tables
from model_diffs.report import reductions
from model_diffs.stats.estimates import Estimate

FOLDER = "base__to__npo/step"
SEED = 7


MATRICES = {
    "name": ["a", "b", "c", "d"],
    "layer": [-1, 0, 0, 1],
    "group": ["other", "mlp", "attn", "mlp"],
    "x": [10.0, 2.0, 3.0, 6.0],
    "y": [1.0, 4.0, 5.0, 8.0],
    "w": [1.0, 2.0, 0.0, 3.0],
}


class Outroot:
    """Result folders with tables and a record."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def table(self, name: str, columns: dict[str, Any], folder: str = FOLDER, **arguments: Any):
        place = self.root / folder
        place.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_csv(place / f"{name}.csv", index=False)
        splits, sampled = ("forget", "retain"), arguments.pop("sampled", "q")
        record = {
            "arguments": {"seed": 42, "questions": "q.jsonl", **arguments},
            "inputs": [
                {"path": "q.jsonl", "sha256": sampled, "size": 1, "mtime_ns": 0, "ctime_ns": 0}
            ],
            "outputs": [],
            "texts": {split: {"sha256": split + sampled} for split in splits},
            "tokens": dict.fromkeys(splits, 100),
        }
        (place / "run.json").write_text(json.dumps(record))

    def read(
        self,
        folder: str = FOLDER,
        base: str = "base",
        changed: str = "npo",
        seed: int = SEED,
        **measure: Any,
    ) -> Estimate:
        place = Place(Tables(self.root), folder, base, changed, seed)
        filled = {"axis": "function", "table": "t", "column": "x", **measure}
        return reductions.read(Measure("key", **filled), place)


def absent(out: Outroot, match: str, **measure: Any) -> Absent:
    with pytest.raises(Absent, match=match) as caught:
        out.read(**measure)
    return caught.value
