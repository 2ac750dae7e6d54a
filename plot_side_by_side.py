"""Base → filtered and base → unlearned on the same axes: does the patch look like the real thing?

Draws steps 1 and 4 of several comparisons of one base together: how much the weights of each block
changed and in how many directions, and how far hidden states moved on forget and retain texts.

    uv run plot_side_by_side.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__npo
    uv run plot_side_by_side.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered --outdir figures --format pdf

Writes <outroot>/<A>__side_by_side/: weights.png, activations.png, weights.csv, activations.csv (the
tables of all comparisons, one under the other, with a column `comparison`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.core import naming
from model_diffs.core.options import Comparison, Figures, recorded
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Step, Table
from model_diffs.core.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.core.figures import Panel

STEP = Step(
    number=5,
    folder="{base}__side_by_side",
    question="Do the changes of filtered and unlearned models look alike?",
    scope="study",
    reads=("param_stats", "activation_stats"),
    tables=(Table("weights"), Table("activations")),
    figures=(
        Figure("weights", "How the weights changed"),
        Figure("activations", "How hidden states moved"),
    ),
)


Triples = Sequence[tuple[str, str, str]]
WEIGHTS: Triples = (
    ("dW_fro_layer_rel", "size of the change", r"$\|\Delta W\|_F \;/\; \|W\|_F$"),
    ("mean_dW_stable_rank", "stable rank", r"$\|\Delta W\|_F^2 \;/\; \sigma_1(\Delta W)^2$"),
)
STATES: Triples = (
    ("mean_dh_rel", "movement", "‖Δh‖₂ / ‖h‖₂, mean over tokens"),
    ("norm_change_L2", "change of size", "mean ‖h‖₂, changed − base"),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Figures):
    """Side by side."""


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder for all comparisons of the base."""
    label = STEP.folder.format(base=naming.model_label(options.model_a))
    folder = Path(options.outdir or Path(options.outroot) / label)
    decided = {**recorded(options), "changed": options.model_b}
    return [PlannedRun(folder, "side by side", decided, options.model_a)]


def gather(run: Run, options: Options, source: str, script: str) -> "pd.DataFrame":
    """One table of all comparisons, in the order they were given."""
    import pandas as pd

    base, tables = naming.model_label(options.model_a), []
    for model_b in options.model_b:
        path = Path(options.outroot, naming.comparison_label(options.model_a, model_b), source)
        found = read_table(path, f"{script} makes it")
        run.reads(path)
        found.insert(0, "comparison", naming.short_label(model_b, base))
        tables.append(found)
    return pd.concat(tables, ignore_index=True)


def panels_of(
    table: "pd.DataFrame", by: str, groups: Triples, quantities: Triples, **look: Any
) -> "list[Panel]":
    """A panel per quantity (column, heading, unit) and group of rows (value in column `by`,
    heading, line style), with a line per comparison that has a number."""
    from model_diffs.core.figures import Panel, column_line, model_colour

    names, panels = list(table.comparison.unique()), []
    for column, what, unit in quantities:
        for value, heading, style in groups:
            rows = table[table[by] == value]
            lines = [
                column_line(rows[rows.comparison == n], column, n, model_colour(n, names), style)
                for n in names
            ]
            drawn = [line for line in lines if line.x]
            panels.append(Panel(f"{heading}: {what}", unit, drawn, **look))
    return panels


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Draw all comparisons together."""
    from model_diffs.core import figures

    title = options.title or f"changed models against {naming.model_label(options.model_a)}"
    components = (("mlp", "MLP", "-"), ("attn", "Attention", "-"))
    splits = [(split, f"{split} texts", style) for split, style in figures.STYLES.items()]
    for planned in todo:
        with open_run(planned) as run:
            table = gather(run, options, "param_stats/per_layer.csv", "collect_param_stats.py")
            run.table("weights", table)
            panels = panels_of(table, "group", components, WEIGHTS, from_zero=True)
            heading = f"How the weights changed: {title}"
            run.figure("weights", figures.layer_figure(heading, panels, legend="below"))

            source = "activation_stats/activation_stats.csv"
            table = gather(run, options, source, "collect_activation_norms.py")
            run.table("activations", table)
            look = {"reference": 0.0, "xlabel": figures.STATES}
            panels = panels_of(table, "split", splits, STATES, **look)
            heading = f"How hidden states moved: {title}"
            run.figure("activations", figures.layer_figure(heading, panels, legend="below"))


if __name__ == "__main__":
    run_step(__name__)
