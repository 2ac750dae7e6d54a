"""The relearning attack over all models: one table, and the figure of both folds by arm."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.attacks.relearning_tables import AREA, CHANCE, ENDS, OVER_FILTERED, SHARE
from model_diffs.core import figures
from model_diffs.core.naming import short_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from model_diffs.core.figures import Panel

ACCURACIES = {
    "heldout_accuracy": "facts never shown",
    "attack_accuracy": "facts attacked",
    "general_accuracy": "general facts",
}
NLLS = {"forget_nll": "forget lines never shown", "retain_nll": "retain lines"}


class Found(NamedTuple):
    """The result of one model, read back."""

    label: str
    table: "pd.DataFrame"
    summary: dict[str, Any]


def read(folder: Path) -> Found:
    """The result of one model, from its folder `<outroot>/<model>/relearning`."""
    import pandas as pd

    facts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Found(folder.parent.name, pd.read_csv(folder / "relearning.csv"), facts)


def overview_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """One row per model and arm: what came back at the rate picked; empty where nothing was
    tested, and why in `not_tested`."""
    columns = ("arm", "rates", "rates_took", "not_tested", "lr", "step")
    shown = [f"{name}{end}" for name in ACCURACIES for end in ENDS]
    shown += [*OVER_FILTERED, *AREA, *SHARE, "steps_to_half"]
    rows = []
    for one in found:
        start = one.summary["start"]["heldout_accuracy"]
        for arm in one.summary["arms"]:
            row = {"model": one.label, **{name: arm[name] for name in columns}}
            row |= {"start_heldout_accuracy": start, **{name: arm[name] for name in shown}}
            rows.append(row)
    return rows


def _shown_rate(one: Found, arm: dict[str, Any]) -> float:
    """The rate picked or, where the arm tested nothing, the one that came nearest to it."""
    if arm["lr"] is not None:
        return float(arm["lr"])
    own = one.table[one.table["arm"] == arm["arm"]]
    return float(own.loc[own["attack_accuracy"].fillna(0).idxmax(), "lr"])


def _panel(found: Sequence[Found], base: str, arm: str, rate: float | None, metric: str) -> "Panel":
    """One metric over the steps of one arm; `rate` None: each model at the rate picked for it."""
    labels, lines = [one.label for one in found], []
    for one in found:
        facts = next(each for each in one.summary["arms"] if each["arm"] == arm)
        chosen = _shown_rate(one, facts) if rate is None else rate
        table = one.table[(one.table["arm"] == arm) & (one.table["lr"] == chosen)]
        colour = figures.BASE if one.label == base else figures.model_colour(one.label, labels)
        # Base and filtered models are references for the others.
        style = ":" if colour in (figures.BASE, figures.FILTERED) else "-"
        name = short_label(one.label, base)
        if facts["not_tested"] if rate is None else (table["took"] == 0).any():
            name, style = f"{name} (not tested by {arm})", "--"
        lines.append(figures.column_line(table, metric, name, colour, style, "step"))
    asked = metric in ACCURACIES
    return figures.Panel(
        f"{arm}: {(ACCURACIES | NLLS)[metric]}" + (f" (rate {rate:g})" if rate else ""),
        "four-choice accuracy" if asked else "NLL, nats per token",
        lines,
        CHANCE if asked else None,
        "chance",
        from_zero=asked,
        xlabel="steps of the attack",
        log_steps=True,
    )


def figures_of(
    found: Sequence[Found], base: str, arms: Iterable[str], rates: Iterable[float]
) -> Iterator[tuple[str, "Figure"]]:
    """Each figure's name and the figure: `relearning` and, of several rates, one by rate.

    All models, a row of panels for each arm and rate. Held-out beside attacked and general facts
    or, without questions, forget beside retain NLL.
    """
    asked = [m for m in ACCURACIES if any(one.table[m].notna().any() for one in found)]
    metrics, tried = asked or [*NLLS], sorted(set(rates))
    drawn: dict[str, tuple[str, Sequence[float | None]]] = {
        "relearning": ("at the rate chosen for each", [None])
    }
    if len(tried) > 1:
        drawn["relearning_by_rate"] = ("by learning rate", tried)
    for name, (which, shown) in drawn.items():
        panels = [
            _panel(found, base, arm, rate, metric)
            for arm in dict.fromkeys(arms)
            for rate in shown
            for metric in metrics
        ]
        title = f"What relearning brings back, {which}"
        yield name, figures.layer_figure(title, panels, columns=len(metrics), legend="below")
