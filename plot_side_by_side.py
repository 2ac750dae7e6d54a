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

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core import naming
from model_diffs.core.options import Comparison, Figures, recorded
from model_diffs.core.results import PlannedRun, Run, open_run, read_table
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Step, Table

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


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Figures):
    """Side by side."""


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder for all comparisons of the base."""
    label = STEP.folder.format(base=naming.model_label(options.model_a))
    folder = Path(options.outdir or Path(options.outroot) / label)
    decided = {**recorded(options), "changed": options.model_b}
    return [PlannedRun(folder, "side by side", decided, options.model_a)]


def gather(run: Run, options: Options, table: str, script: str) -> "pd.DataFrame":
    """One table of all comparisons, in the order they were given."""
    import pandas as pd

    base, tables = naming.model_label(options.model_a), []
    for model_b in options.model_b:
        path = Path(options.outroot, naming.comparison_label(options.model_a, model_b), table)
        found = read_table(path, f"{script} makes it")
        run.reads(path)
        found.insert(0, "comparison", naming.short_label(model_b, base))
        tables.append(found)
    return pd.concat(tables, ignore_index=True)


def panels_of(
    table: "pd.DataFrame",
    by: str,
    groups: Iterable[tuple[str, str, str]],
    quantities: Iterable[tuple[str, str, str]],
) -> "list[Panel]":
    """A panel per quantity (column, heading, unit) and group of rows (value in column `by`,
    heading, line style), with a line per comparison that has a number."""
    from model_diffs.core.figures import Panel, column_line, model_colour

    names, groups, panels = list(table.comparison.unique()), list(groups), []
    for column, what, unit in quantities:
        for value, heading, style in groups:
            rows = table[table[by] == value]
            lines = [
                column_line(rows[rows.comparison == n], column, n, model_colour(n, names), style)
                for n in names
            ]
            panels.append(Panel(f"{heading}: {what}", unit, [line for line in lines if line.x]))
    return panels


def draw_weights(run: Run, table: "pd.DataFrame", title: str) -> None:
    """Relative change and stable rank per block, MLP and attention."""
    from model_diffs.core.figures import layer_figure

    quantities = (
        ("dW_fro_layer_rel", "size of the change", r"$\|\Delta W\|_F \;/\; \|W\|_F$"),
        ("mean_dW_stable_rank", "stable rank", r"$\|\Delta W\|_F^2 \;/\; \sigma_1(\Delta W)^2$"),
    )
    groups = (("mlp", "MLP", "-"), ("attn", "Attention", "-"))
    panels = panels_of(table, "group", groups, quantities)
    panels = [panel._replace(from_zero=True) for panel in panels]
    run.figure("weights", layer_figure(f"How the weights changed: {title}", panels, legend="below"))


def draw_states(run: Run, table: "pd.DataFrame", title: str) -> None:
    """Relative movement of hidden states and change of their norm, forget beside retain."""
    from model_diffs.core.figures import STATES, STYLES, layer_figure

    quantities = (
        ("mean_dh_rel", "movement", "‖Δh‖₂ / ‖h‖₂, mean over tokens"),
        ("norm_change_L2", "change of size", "mean ‖h‖₂, changed − base"),
    )
    groups = [(split, f"{split} texts", style) for split, style in STYLES.items()]
    panels = panels_of(table, "split", groups, quantities)
    panels = [panel._replace(reference=0.0, xlabel=STATES) for panel in panels]
    title = f"How hidden states moved: {title}"
    run.figure("activations", layer_figure(title, panels, legend="below"))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Draw all comparisons together."""
    title = options.title or f"changed models against {naming.model_label(options.model_a)}"
    for planned in todo:
        with open_run(planned) as run:
            table = gather(run, options, "param_stats/per_layer.csv", "collect_param_stats.py")
            draw_weights(run, run.table("weights", table), title)
            name = "activation_stats/activation_stats.csv"
            table = gather(run, options, name, "collect_activation_norms.py")
            draw_states(run, run.table("activations", table), title)


if __name__ == "__main__":
    run_step(__name__)
