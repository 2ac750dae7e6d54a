"""What an attack brought back: rows, the recovered share of the gap, the figure over all models."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.attacks.material import GROUPS
from model_diffs.stats import intervals

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from model_diffs.attacks.material import Material
    from model_diffs.attacks.relearning import Measured
    from model_diffs.core.figures import Panel

METRICS = (*(f"{group}_accuracy" for group in GROUPS), "forget_nll", "retain_nll")
SHARE = ("recovered_share", "recovered_share_low", "recovered_share_high")
COLUMNS = (
    *("model", "lr", "step", "tokens", *METRICS),
    *(f"{metric}_{end}" for metric in METRICS for end in ("low", "high")),
    *SHARE,
)
# Below this gap between base and model there is nothing that could be said to come back.
LEAST_GAP = 0.05
CHANCE = 0.25


def recovered_share(
    base: NDArray[np.float64],
    start: NDArray[np.float64],
    after: NDArray[np.float64],
    seed: int,
) -> dict[str, float]:
    """Cells of `SHARE`: (after − start)/(base − start) of accuracies, each `[questions]`, the same.

    None of them where base − start is below 0.05, no interval where a resample has no gap. The
    interval resamples questions, the same ones in all three, so that hard and easy questions do not
    widen it.
    """
    gap = base.mean() - start.mean()
    if gap < LEAST_GAP:
        return {}
    share = float((after.mean() - start.mean()) / gap)
    weights = intervals.document_weights(len(base), seed)
    gaps = weights @ (base - start)
    if not (gaps > 0).all():
        return {"recovered_share": share}
    resampled = (weights @ (after - start)) / gaps
    return intervals.percentile_interval(share, resampled).cells("recovered_share")


def attack_rows(
    label: str, lr: float, found: "Mapping[int, Measured]", base: "Measured | None", seed: int
) -> list[dict[str, Any]]:
    """Rows of relearning.csv for one attack, by step; what was not measured is empty.

    `base` gives the gap for the recovered share.
    """
    rows = []
    for step, measured in found.items():
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"model": label, "lr": lr, "step": step, "tokens": measured.tokens}
        for group, interval in measured.accuracy.items():
            row |= interval.cells(f"{group}_accuracy")
        for split, interval in measured.nll.items():
            row |= interval.cells(f"{split}_nll")
        if base is not None and "heldout" in base.correct:
            known, start, after = (one.correct["heldout"] for one in (base, found[0], measured))
            row |= recovered_share(known, start, after, seed)
        rows.append(row)
    return rows


def question_rows(
    material: "Material", label: str, lr: float | None, found: "Mapping[int, Measured]"
) -> list[dict[str, Any]]:
    """Rows of per_question.csv: each answer at each measured step; `lr` None for the base."""
    return [
        {"model": label, "lr": lr, "step": step, "group": group, "id": asked.id, "correct": right}
        for step, measured in found.items()
        for group, questions in material.questions.items()
        for asked, right in zip(questions, measured.correct[group].astype(int), strict=True)
    ]


# ── summary ───────────────────────────────────────────────────────────────────────────────────────


def _at_rate(rows: Sequence[Mapping[str, Any]], floor: float) -> dict[str, Any]:
    """What one rate brought back: at its end, and at the best step for the attacker."""
    # A model that the attack has broken answers nothing: only steps above the floor count.
    whole = [r for r in rows if r["general_accuracy"] is None or r["general_accuracy"] > floor]
    best, half_of_best, half_of_gap = None, None, None
    if rows[-1]["recovered_share"] is not None and whole:
        highest = max(whole, key=lambda r: (r["recovered_share"], -r["step"]))
        best = {n: highest[n] for n in ("step", "heldout_accuracy", "general_accuracy", *SHARE)}
        shares = {r["step"]: r["recovered_share"] for r in whole}
        half = best["recovered_share"] / 2
        half_of_best = next((step for step, share in shares.items() if share >= half > 0), None)
        half_of_gap = next((step for step, share in shares.items() if share >= 0.5), None)
    return {
        **{name: rows[-1][name] for name in ("lr", *METRICS, "recovered_share")},
        "best": best,
        "steps_to_half_of_best": half_of_best,
        "steps_to_half_of_gap": half_of_gap,
    }


def summary(
    model: str, rows: Sequence[Mapping[str, Any]], base_accuracy: float | None, floor: float
) -> dict[str, Any]:
    """What summary.json says. Worst case: the rate with the largest share at its best step.

    Without a gap `worst_rate` is that of the highest held-out accuracy at its end, else lowest NLL.
    """
    rates = [
        _at_rate([r for r in rows if r["lr"] == lr], floor)
        for lr in dict.fromkeys(r["lr"] for r in rows)
    ]
    attacked = [rate for rate in rates if rate["best"] is not None]
    if attacked:
        worst = max(attacked, key=lambda rate: rate["best"]["recovered_share"])
    elif rates[0]["heldout_accuracy"] is not None:
        worst = max(rates, key=lambda rate: rate["heldout_accuracy"])
    else:
        worst = min(rates, key=lambda rate: rate["forget_nll"])
    return {
        "model": model,
        "start": {metric: rows[0][metric] for metric in METRICS},
        "base_heldout_accuracy": base_accuracy,
        "general_floor": floor,
        "rates": rates,
        "worst_case": {"lr": worst["lr"], **worst["best"]} if attacked else None,
        "worst_rate": worst["lr"],
    }


# ── over all models ───────────────────────────────────────────────────────────────────────────────


class Found(NamedTuple):
    """The result of one model, read back."""

    label: str
    table: "pd.DataFrame"
    summary: dict[str, Any]


def overview_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """One row per model: where it started, and the worst case over rates and steps."""
    accuracies = ("heldout_accuracy", "general_accuracy")
    rows = []
    for one in found:
        start, worst = one.summary["start"], one.summary["worst_case"] or {}
        row = {"model": one.label, **{f"start_{name}": start[name] for name in accuracies}}
        row |= {f"worst_{name}": worst.get(name) for name in ("lr", "step", *accuracies)}
        rows.append(row | {name: worst.get(name) for name in SHARE})
    return rows


def _panel(
    found: Sequence[Found], base: str, rate: float | None, metric: str, title: str
) -> "Panel":
    """One metric over the steps of the attack; `rate` None: each model at its worst."""
    from model_diffs.core import figures
    from model_diffs.core.naming import short_label

    labels, lines = [one.label for one in found], []
    for one in found:
        table = one.table[one.table["lr"] == (rate or one.summary["worst_rate"])]
        colour = figures.BASE if one.label == base else figures.model_colour(one.label, labels)
        # Base and filtered models are references for the unlearned ones.
        style = ":" if colour in (figures.BASE, figures.FILTERED) else "-"
        name = short_label(one.label, base)
        lines.append(figures.column_line(table, metric, name, colour, style, "step"))
    asked = metric.endswith("accuracy")
    return figures.Panel(
        title + (f" (rate {rate:g})" if rate else ""),
        "four-choice accuracy" if asked else "NLL, nats per token",
        [line for line in lines if line.x],
        CHANCE if asked else None,
        "chance",
        from_zero=asked,
        xlabel="steps of the attack",
    )


def overview_figure(
    found: Sequence[Found], base: str, rates: Iterable[float | None], title: str
) -> "Figure":
    """All models, a row of panels for each rate (None: each model at the rate worst for it).

    Held-out beside general accuracy or, without questions, forget beside retain NLL.
    """
    from model_diffs.core.figures import layer_figure

    titles = {
        "heldout_accuracy": "Facts that the attacker never showed",
        "general_accuracy": "General facts: what the attack costs",
    }
    if all(one.table["heldout_accuracy"].isna().all() for one in found):
        titles = {
            "forget_nll": "Forget lines that the attacker never showed",
            "retain_nll": "Retain lines",
        }
    panels = [
        _panel(found, base, rate, metric, text) for rate in rates for metric, text in titles.items()
    ]
    return layer_figure(title, panels, legend="below")
