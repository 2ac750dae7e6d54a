"""Eliciting attacks over all models: one table and the figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from model_diffs.attacks.elicitation import NONE
from model_diffs.attacks.elicitation_tables import CHANCE, ENDS, OVER_FILTERED, WORST
from model_diffs.core import figures as look
from model_diffs.core import folders, tables
from model_diffs.core.errors import BadInput
from model_diffs.core.naming import short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from model_diffs.core.figures import Line, Panel

INTERPOLATE, REWIND = "interpolate", "rewind"
TO_FILTERED = "filtered-"
COLUMNS = 3


class Found(NamedTuple):
    """The result of one model, read back."""

    label: str
    table: pd.DataFrame
    summary: dict[str, Any]

    def rows(self, attack: str, fold: str) -> pd.DataFrame:
        """Of elicitation.csv: an attack's strengths on one fold."""
        return self.table[(self.table["attack"] == attack) & (self.table["fold"] == fold)]

    def picked(self, attack: str) -> Mapping[str, Any]:
        """What summary.json says of an attack; of `none`, of the model as it answers."""
        if attack == NONE:
            start: dict[str, Any] = self.summary["start"]
            return {**start, **{f"heldout_{name}": start[name] for name in start}}
        every = self.summary["attacks"]
        found: dict[str, Any] = next((one for one in every if one["attack"] == attack), {})
        return found


def read(folder: Path) -> Found:
    """The result in a model's folder. BadInput where it is damaged."""
    hint = "attack the model again with --force"
    names: dict[str, tuple[str, ...]] = {"attack": (), "strength": (), "fold": ()}
    numbers, empty = ("accuracy", "picked"), ("undone_share", *OVER_FILTERED)
    table = tables.read_table(folder / "elicitation.csv", hint, numbers, empty, names)
    facts = folders.read_json(folder / "summary.json")
    if not isinstance(facts, dict) or not {"model", "start", "attacks"} <= {*facts}:
        raise BadInput(f"{folder / 'summary.json'} is damaged; {hint}")
    return Found(facts["model"], table, facts)


def overview_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """One row per model and attack: what it brought out at the strength picked."""
    names = ["general_accuracy", "adjacent_accuracy", *OVER_FILTERED]
    names += [f"heldout_accuracy{end}" for end in ENDS]
    rows = []
    for one in found:
        start = one.picked(NONE)
        rows.append({"model": one.label, "attack": NONE, **{name: start[name] for name in names}})
        rows += [{"model": one.label, **attack} for attack in one.summary["attacks"]]
        if worst := one.summary.get("worst_case"):
            shown = ["tune_accuracy", *names[:1], *names[2:]]
            cells = {name: worst[name] for name in shown}
            strength = " ".join(filter(None, (worst["attack"], worst["strength"])))
            rows.append({"model": one.label, "attack": WORST, "strength": strength, **cells})
    return rows


class Drawn(NamedTuple):
    """Models as figures show them."""

    found: Sequence[Found]
    base: str
    """Labels of the base and of the filtered model; empty where there is none."""
    filtered: str

    def name(self, one: Found) -> str:
        return short_label(one.label, self.base) if self.base else one.label

    def colour(self, one: Found) -> str:
        labels = [each.label for each in self.found]
        return look.BASE if one.label == self.base else look.model_colour(one.label, labels)

    def of(self, label: str) -> Found | None:
        """The result of the model of that label."""
        return next((one for one in self.found if one.label == label), None)


# ── each attack ───────────────────────────────────────────────────────────────────────────────────


def _attack_panel(axes: "Axes", drawn: Drawn, attack: str) -> None:
    """Held-out accuracy of each model under an attack, a hollow mark where it stood before."""
    reference = drawn.of(drawn.filtered)
    value = reference.picked(attack).get("heldout_accuracy") if reference else None
    if value is not None:
        axes.axvline(value, color=look.FILTERED, lw=1, ls="--", zorder=0)
    axes.axvline(CHANCE, color="#999999", lw=0.9, zorder=0)
    for at, one in enumerate(drawn.found):
        colour, here = drawn.colour(one), one.picked(attack)
        before, after = one.picked(NONE)["heldout_accuracy"], here.get("heldout_accuracy")
        axes.plot([before], [at], "o", mfc="white", mec=colour, ms=6, zorder=2)
        if after is None:
            axes.text(0.02, at, "not tested", va="center", fontsize=9, color="#777777")
            continue
        low, high = (here[f"heldout_accuracy{end}"] for end in ENDS[1:])
        axes.plot([low, high], [at, at], "-", color=colour, lw=2, zorder=3)
        axes.plot([after], [at], "o", color=colour, ms=6, zorder=4)
    uses = " (reads the base)" if one.picked(attack).get("reads_base") else ""
    axes.set(title=f"{attack}{uses}" if attack != NONE else "no attack", xlim=(0, 1.03))
    axes.set_yticks(range(len(drawn.found)), [drawn.name(one) for one in drawn.found])
    axes.set_ylim(len(drawn.found) - 0.5, -0.5)


def attacks_figure(drawn: Drawn) -> "Figure":
    """A panel per attack, at the strength picked for each model."""
    import matplotlib.pyplot as plt

    attacks = [NONE, *(one["attack"] for one in drawn.found[0].summary["attacks"])]
    rows = -(-len(attacks) // COLUMNS)
    height = rows * (1.2 + 0.3 * len(drawn.found)) + 0.6
    size = (look.WIDTH_INCHES, height)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axes, attack in zip(grid.flat, attacks, strict=False):
        _attack_panel(axes, drawn, attack)
    for place, axes in enumerate(grid.flat):
        if place % COLUMNS:
            axes.tick_params(labelleft=False)
        if place >= len(attacks):
            axes.remove()
    figure.supxlabel(
        "four-choice accuracy on held-out facts (hollow: before the attack; grey line: chance; "
        "dashed: the filtered model under the attack)",
        fontsize=10,
    )
    figure.suptitle("What attacks bring out without training the model", fontsize=13)
    return figure


# ── on the way to another model ───────────────────────────────────────────────────────────────────


def _way(drawn: Drawn, one: Found, fold: str, prefix: str, end: Found | None) -> "Line":
    """Accuracy over the share of the way to the model `end`, in percent."""
    rows = one.rows(INTERPOLATE, fold)
    own = rows[rows["strength"].str.match(f"{prefix}t")]
    own = own.assign(t=100 * own["strength"].str.removeprefix(f"{prefix}t").astype(float))
    ends = [one.rows(NONE, fold).assign(t=0.0)]
    if end is not None:
        ends.append(end.rows(NONE, fold).assign(t=100.0))
    table = pd.concat([ends[0], own, *ends[1:]]).sort_values("t", kind="stable")
    table = table if len(own) else table.iloc[:0]
    return look.column_line(table, "accuracy", drawn.name(one), drawn.colour(one), x="t")


def interpolation_figure(drawn: Drawn) -> "Figure":
    """Held-out and general accuracy on the way to the base and to the filtered model."""
    panels: list[Panel] = []
    for label, prefix, where in (
        (drawn.base, "", "base"),
        (drawn.filtered, TO_FILTERED, "filtered model"),
    ):
        for fold, title in (("heldout", "held-out facts"), ("general", "general facts")):
            lines = [_way(drawn, one, fold, prefix, drawn.of(label)) for one in drawn.found]
            panel = look.Panel(f"{title}, towards the {where}", "four-choice accuracy", lines)
            panel = panel._replace(reference=CHANCE, reference_label="chance", from_zero=True)
            panels.append(panel._replace(xlabel="share of the way, %"))
    return look.layer_figure("Weights between two models", panels, legend="below")


# ── reversals ─────────────────────────────────────────────────────────────────────────────────────


def _smallest_panel(axes: "Axes", drawn: Drawn, chosen: Sequence[Found]) -> None:
    for at, one in enumerate(chosen):
        picked = one.picked(REWIND)
        if picked["undone_share"] is None:
            axes.text(0.01, at, "none, or no gap", va="center", fontsize=9, color="#777777")
            continue
        axes.barh([at], [picked["undone_share"]], color=drawn.colour(one), height=0.6)
        says = f"{picked['strength']}: {picked['undone_share']:.2f}"
        axes.text(picked["undone_share"] + 0.01, at, says, va="center", fontsize=9)
    axes.set_yticks(range(len(chosen)), [drawn.name(one) for one in chosen])
    axes.set(xlim=(0, 1.15), ylim=(len(chosen) - 0.5, -0.5), xlabel="share of ‖ΔW‖² put back")
    axes.set_title("smallest reversal that restores half of the gap on tune")


def _directions_panel(axes: "Axes", drawn: Drawn, chosen: Sequence[Found]) -> None:
    for one in chosen:
        rows = one.rows(REWIND, "heldout")
        start = one.rows(NONE, "heldout").assign(undone_share=0.0)
        k = rows[rows["strength"].str.fullmatch("k[0-9]+|all")]
        line = pd.concat([start, k]).sort_values("undone_share")
        colour = drawn.colour(one)
        axes.plot(
            line["undone_share"], line["accuracy"], "-o", color=colour, ms=4, label=drawn.name(one)
        )
        blocks = rows[rows["strength"].str.fullmatch("block[0-9]+")]
        axes.plot(blocks["undone_share"], blocks["accuracy"], "s", color=colour, mfc="white", ms=6)
    axes.set(xlabel="share of ‖ΔW‖² put back", ylabel="accuracy on held-out facts", ylim=(0, 1.03))
    axes.set_title("k directions of every matrix (lines), single blocks (squares)")
    axes.legend(loc="lower right", fontsize=9)


def rewind_figure(drawn: Drawn) -> "Figure":
    """What reversals restore, and the smallest one of each model."""
    import matplotlib.pyplot as plt

    chosen = [one for one in drawn.found if one.picked(REWIND)["strengths"]]
    size = (look.WIDTH_INCHES, 5.2)
    figure, axes = plt.subplots(1, 2, figsize=size, layout="constrained")
    _directions_panel(axes[0], drawn, chosen)
    _smallest_panel(axes[1], drawn, chosen)
    figure.suptitle("Parts of the change put back", fontsize=13)
    return figure


def figures(found: Sequence[Found], base: str, filtered: str) -> "Iterator[tuple[str, Figure]]":
    """Name and figure, of what was tried."""
    drawn = Drawn(found, base, filtered)
    tried = {one["attack"] for each in found for one in each.summary["attacks"] if one["strengths"]}
    yield "elicitation", attacks_figure(drawn)
    if INTERPOLATE in tried:
        yield "interpolation", interpolation_figure(drawn)
    if REWIND in tried:
        yield "rewind", rewind_figure(drawn)
