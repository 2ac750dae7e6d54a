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
    from matplotlib.figure import Figure as Drawn

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


def gather(
    run: Run, options: Options, name: str, source: str, script: str, by: str, quantities: Triples
) -> "pd.DataFrame":
    """Write one table of all comparisons, in the order they were given."""
    import pandas as pd

    base, tables = naming.model_label(options.model_a), []
    for model_b in options.model_b:
        path = Path(options.outroot, naming.comparison_label(options.model_a, model_b), source)
        drawn = [column for column, *_ in quantities]
        tables.append(read_table(path, f"{script} makes it", ("layer",), drawn, {by: ()}))
        tables[-1].insert(0, "comparison", naming.short_label(model_b, base))
        run.reads(path)
    return run.table(name, pd.concat(tables))


def draw(
    table: "pd.DataFrame", heading: str, by: str, groups: Triples, quantities: Triples, **look: Any
) -> "Drawn":
    """A panel per quantity (column, title, unit) and group of rows (value in column `by`, title,
    line style), with a line per comparison."""
    from model_diffs.core.figures import Panel, column_line, layer_figure, model_colour

    names, panels = list(table["comparison"].unique()), []
    for column, what, unit in quantities:
        for value, title, style in groups:
            lines = [
                column_line(rows, column, str(name), model_colour(str(name), names), style)
                for name, rows in table[table[by] == value].groupby("comparison", sort=False)
            ]
            panels.append(Panel(f"{title}: {what}", unit, lines, **look))
    return layer_figure(heading, panels, legend="below")


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Draw all comparisons together."""
    from model_diffs.core import figures

    title = options.title or f"changed models against {naming.model_label(options.model_a)}"
    components = (("mlp", "MLP", "-"), ("attn", "Attention", "-"))
    splits = [(split, f"{split} texts", style) for split, style in figures.STYLES.items()]
    states: dict[str, Any] = {"reference": 0.0, "xlabel": figures.STATES}
    for planned in todo:
        with open_run(planned) as run:
            source, script = "param_stats/per_layer.csv", "collect_param_stats.py"
            table = gather(run, options, "weights", source, script, "group", WEIGHTS)
            heading = f"How the weights changed: {title}"
            figure = draw(table, heading, "group", components, WEIGHTS, from_zero=True)
            run.figure("weights", figure)

            source, script = "activation_stats/activation_stats.csv", "collect_activation_norms.py"
            table = gather(run, options, "activations", source, script, "split", STATES)
            heading = f"How hidden states moved: {title}"
            run.figure("activations", draw(table, heading, "split", splits, STATES, **states))


if __name__ == "__main__":
    run_step(__name__)
