"""Step 5. Where, over depth, do hidden states grow, shrink or move?

Draws step 4's table: the norms of both models over layers, and the size of the difference.

    uv run plot_activation_norms.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered
    uv run plot_activation_norms.py --activation-csv activation_stats.csv --outdir figures \\
        --title "Base and filtered"

Writes <outroot>/<A>__to__<B>/activation_plots/activation_norms_{forget,retain}.png and
activation_diffs_{forget,retain}.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core import arguments, results
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "activation_plots"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_comparison(parser, required=False)
    arguments.add_figures(parser)
    parser.add_argument("--activation-csv", default=None, help="a table to draw by itself")
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per comparison, or the one of --activation-csv."""
    return arguments.plot_runs(options, FOLDER, [options.activation_csv])


def table_of(planned: PlannedRun) -> Path:
    """The CSV that a planned run draws."""
    csv = planned.arguments["activation_csv"]
    return Path(csv) if csv else planned.folder.parent / "activation_stats/activation_stats.csv"


def draw(run: results.Run, table: "pd.DataFrame", planned: PlannedRun) -> None:
    """Both figures of each split."""
    from model_diffs.core.figures import (
        BASE,
        STYLES,
        Panel,
        column_line,
        layer_figure,
        model_colour,
    )

    title, xlabel = arguments.title_of(planned), "hidden state (0 = embedding output)"
    base, changed = arguments.names_of(planned)
    colour = model_colour(planned.model_b or title)
    mean = "mean over tokens, 95 % interval over texts"
    for split, rows in table.groupby("split", sort=False):
        style = STYLES[str(split)]
        norms, diffs = [], []
        for norm, sign in (("L1", "₁"), ("L2", "₂")):
            sizes = [
                column_line(rows, f"model_a_norm_{norm}", base, BASE, style),
                column_line(rows, f"model_b_norm_{norm}", changed, colour, style),
            ]
            change = [column_line(rows, f"mean_dh_{norm}", mean, colour, style)]
            norms.append(Panel(f"{norm} norm", f"‖h‖{sign}", sizes, from_zero=True, xlabel=xlabel))
            diffs.append(Panel(f"{norm} norm", f"‖Δh‖{sign}", change, 0.0, xlabel=xlabel))
        relative = [column_line(rows, "mean_dh_rel", mean, colour, style)]
        diffs.append(Panel("Relative to the base", "‖Δh‖₂ / ‖h‖₂", relative, 0.0, xlabel=xlabel))
        figure = layer_figure(f"Size of hidden states on {split} texts: {title}", norms)
        run.figure(f"activation_norms_{split}", figure)
        figure = layer_figure(
            f"How far hidden states moved on {split} texts: {title}", diffs, 3, legend="below"
        )
        run.figure(f"activation_diffs_{split}", figure)


def main() -> None:
    """Draw what is not complete."""
    options = parse_arguments()
    for planned in results.pending(planned_runs(options), options.force):
        table = results.read_table(table_of(planned), "collect_activation_norms.py makes it")
        with results.open_run(planned) as run:
            run.reads(table_of(planned))
            draw(run, table, planned)


if __name__ == "__main__":
    arguments.run_script(main)
