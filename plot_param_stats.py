"""Step 2. In which blocks did the weights change, how strongly, and with what rank?

Draws step 1's tables, attention and MLP apart: the relative size of the change per block (layer
locality), its stable rank, its relative spectral norm and, where step 1 ran with --empirical-rank,
both ranks together. No matrix is read again.

    uv run plot_param_stats.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered
    uv run plot_param_stats.py --per-layer-csv per_layer.csv --outdir figures --title "Base → RMU"

Writes <outroot>/<A>__to__<B>/param_plots/{layer_locality,stable_rank,spectral_norm}_{attn,mlp}.png,
and rank_comparison_{attn,mlp}.png with empirical ranks. Where nothing changed there is no rank.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model_diffs.core import arguments, results
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "param_plots"
GROUP_NAMES = {"attn": "attention", "mlp": "MLP"}
RANKS = {"mean_dW_stable_rank": "stable rank", "mean_dW_empirical_rank": "empirical rank"}


class Quantity(NamedTuple):
    """One figure per group: a column of per_layer.csv."""

    file: str
    column: str
    title: str
    ylabel: str


QUANTITIES = (
    Quantity(
        "layer_locality",
        "dW_fro_layer_rel",
        "Size of the weight change",
        r"$\|\Delta W\|_F \;/\; \|W\|_F$",
    ),
    Quantity(
        "stable_rank",
        "mean_dW_stable_rank",
        "Stable rank of the weight change",
        r"$\|\Delta W\|_F^2 \;/\; \sigma_1(\Delta W)^2$, mean of changed matrices",
    ),
    Quantity(
        "spectral_norm",
        "max_dW_spectral_rel",
        "Strongest direction of the weight change",
        "max σ₁(ΔW) / max σ₁(W)",
    ),
)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_comparison(parser, required=False)
    arguments.add_figures(parser)
    parser.add_argument("--per-layer-csv", default=None, help="a per_layer.csv to draw by itself")
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per comparison, or the one of --per-layer-csv."""
    return arguments.plot_runs(options, FOLDER, [options.per_layer_csv])


def table_of(planned: PlannedRun) -> Path:
    """The per_layer.csv that a planned run draws."""
    csv = planned.arguments["per_layer_csv"]
    return Path(csv) if csv else planned.folder.parent / "param_stats/per_layer.csv"


def draw(run: results.Run, table: "pd.DataFrame", planned: PlannedRun) -> None:
    """All figures of one comparison; a group without changed matrices has no rank to draw."""
    from model_diffs.core.figures import ATTENTION, MLP, Line, Panel, column_line, layer_figure

    title = arguments.title_of(planned)
    for group, colour in (("attn", ATTENTION), ("mlp", MLP)):
        rows, name = table[table["group"] == group], GROUP_NAMES[group]

        def one(file: str, heading: str, ylabel: str, lines: list[Line], where: str = name) -> None:
            panel = Panel("", ylabel, [line for line in lines if line.x], from_zero=True)
            if panel.lines:
                run.figure(file, layer_figure(f"{heading}, {where}: {title}", [panel]))

        for quantity in QUANTITIES:
            line = column_line(rows, quantity.column, name, colour)
            one(f"{quantity.file}_{group}", quantity.title, quantity.ylabel, [line])
        if "mean_dW_empirical_rank" in rows:
            lines = [
                column_line(rows, column, label, colour, style)
                for (column, label), style in zip(RANKS.items(), ("-", "--"), strict=True)
            ]
            heading, ylabel = "Both ranks of the weight change", "rank, mean of changed matrices"
            one(f"rank_comparison_{group}", heading, ylabel, lines)


def main() -> None:
    """Draw what is not complete."""
    options = parse_arguments()
    for planned in results.pending(planned_runs(options), options.force):
        source = table_of(planned)
        table = results.read_table(source, "collect_param_stats.py makes it")
        needed = ["layer", "group", *(quantity.column for quantity in QUANTITIES)]
        missing = [column for column in needed if column not in table]
        if missing:
            raise BadInput(f"{source} has no column {missing[0]}; it should be a per_layer.csv")
        with results.open_run(planned) as run:
            run.reads(source)
            draw(run, table, planned)


if __name__ == "__main__":
    arguments.run_script(main)
