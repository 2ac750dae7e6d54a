"""Eliciting attacks over all models: one table and the figures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.attacks.elicitation import NONE
from model_diffs.attacks.elicitation_tables import ENDS, OVER_FILTERED
from model_diffs.core import figures as look
from model_diffs.core.naming import short_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Found(NamedTuple):
    """The result of one model, read back."""

    label: str
    table: "pd.DataFrame"
    summary: dict[str, Any]


def read(folder: Path) -> Found:
    """The result in a model's folder."""
    import pandas as pd

    # A strength such as 8 is a name; that of the model as it answers is empty.
    table = pd.read_csv(folder / "elicitation.csv", dtype={"strength": str})
    table["strength"] = table["strength"].fillna("")
    facts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Found(facts["model"], table, facts)


def overview_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """One row per model and attack: what it brought out at the strength picked."""
    rows = []
    for one in found:
        start = one.summary["start"]
        shared = {"model": one.label}
        unattacked = {f"heldout_accuracy{end}": start[f"accuracy{end}"] for end in ENDS}
        sides = {name: start[name] for name in ("general_accuracy", "adjacent_accuracy")}
        over = {name: start[name] for name in OVER_FILTERED}
        rows.append({**shared, "attack": NONE, "strengths": 1, **unattacked, **sides, **over})
        rows += [{**shared, **attack} for attack in one.summary["attacks"]]
    return rows


def figures(found: Sequence[Found], base: str) -> "Iterator[tuple[str, Figure]]":
    """Name and figure."""
    yield from ()
