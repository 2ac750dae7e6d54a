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
WEIGHTS = ("param_stats/per_layer.csv", "collect_param_stats.py makes it")
STATES = ("activation_stats/activation_stats.csv", "collect_activation_norms.py makes it")


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Figures):
    """Side by side."""


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder for all comparisons of the base."""
    label = STEP.folder.format(base=naming.model_label(options.model_a))
    folder = Path(options.outdir or Path(options.outroot) / label)
    decided = {**recorded(options), "changed": options.model_b}
    return [PlannedRun(folder, "side by side", decided, options.model_a)]


def gather(run: Run, options: Options, source: tuple[str, str]) -> "pd.DataFrame":
    """One table of all comparisons, in the order they were given."""
    import pandas as pd

    name, hint = source
    base, tables = naming.model_label(options.model_a), []
    for model_b in options.model_b:
        folder = Path(options.outroot) / naming.comparison_label(options.model_a, model_b)
        table = read_table(folder / name, hint)
        run.reads(folder / name)
        table.insert(0, "comparison", naming.short_label(model_b, base))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def draw_weights(run: Run, table: "pd.DataFrame", title: str) -> None:
    """Relative change and stable rank per block, MLP and attention."""
    from model_diffs.core.figures import Panel, column_line, layer_figure, model_colour

    names = list(table.comparison.unique())
    panels = []
    for column, what, formula in (
        ("dW_fro_layer_rel", "size of the change", r"$\|\Delta W\|_F \;/\; \|W\|_F$"),
        ("mean_dW_stable_rank", "stable rank", r"$\|\Delta W\|_F^2 \;/\; \sigma_1(\Delta W)^2$"),
    ):
        for group, spelled in (("mlp", "MLP"), ("attn", "Attention")):
            rows = table[table.group == group]
            lines = [
                column_line(rows[rows.comparison == n], column, n, model_colour(n, names))
                for n in names
            ]
            drawn = [line for line in lines if line.x]
            panels.append(Panel(f"{spelled}: {what}", formula, drawn, from_zero=True))
    run.figure("weights", layer_figure(f"How the weights changed: {title}", panels, legend="below"))


def draw_states(run: Run, table: "pd.DataFrame", title: str) -> None:
    """Relative movement of hidden states, forget beside retain on one scale."""
    from model_diffs.core.figures import STYLES, Panel, column_line, layer_figure, model_colour

    names = list(table.comparison.unique())
    panels = []
    for column, what, formula in (
        ("mean_dh_rel", "movement", "‖Δh‖₂ / ‖h‖₂, mean over tokens"),
        ("norm_change_L2", "change of size", "mean ‖h‖₂, changed − base"),
    ):
        for split in ("forget", "retain"):
            rows = table[table.split == split]
            lines = [
                column_line(
                    rows[rows.comparison == n], column, n, model_colour(n, names), STYLES[split]
                )
                for n in names
            ]
            xlabel = "hidden state (0 = embedding output)"
            panels.append(Panel(f"{split} texts: {what}", formula, lines, 0.0, xlabel=xlabel))
    run.figure(
        "activations", layer_figure(f"How hidden states moved: {title}", panels, legend="below")
    )


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Draw all comparisons together."""
    title = options.title or f"changed models against {naming.model_label(options.model_a)}"
    for planned in todo:
        with open_run(planned) as run:
            draw_weights(run, run.table("weights", gather(run, options, WEIGHTS)), title)
            draw_states(run, run.table("activations", gather(run, options, STATES)), title)


if __name__ == "__main__":
    run_step(__name__)
