"""Step 5. Where, over depth, do hidden states grow, shrink or move?

Draws step 4's table: the norms of both models over layers, and the size of the difference.

    uv run plot_activation_norms.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered
    uv run plot_activation_norms.py --activation-csv activation_stats.csv --outdir figures \\
        --title "Base and filtered"

Writes <outroot>/<A>__to__<B>/activation_plots/activation_norms_{forget,retain}.png and
activation_diffs_{forget,retain}.png.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core.options import ComparisonOrTable, Figures, option
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Step, names_of, title_of
from model_diffs.core.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

STEP = Step(
    number=5,
    folder="activation_plots",
    question="Where, over depth, do hidden states grow, shrink or move?",
    reads=("activation_stats",),
    figures=(
        Figure("activation_norms_forget", "‖h‖, forget texts"),
        Figure("activation_norms_retain", "‖h‖, retain texts"),
        Figure("activation_diffs_forget", "‖Δh‖, forget texts", "function"),
        Figure("activation_diffs_retain", "‖Δh‖, retain texts", "function"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(ComparisonOrTable, Figures):
    """Table."""

    activation_csv: str | None = option(None, "draw this table of step 4 by itself")


SIZES = ("model_a_norm", "model_b_norm", "mean_dh")
DRAWN = (*(f"{size}_{norm}" for size in SIZES for norm in ("L1", "L2")), "mean_dh_rel")


def draw(run: Run, table: "pd.DataFrame") -> None:
    """Both figures of each split."""
    from model_diffs.core import figures
    from model_diffs.core.figures import STATES, Panel, column_line, layer_figure

    title, (base, changed) = title_of(run.planned), names_of(run.planned)
    colour = figures.model_colour(run.planned.model_b or title)
    mean = "mean over tokens, 95 % interval over texts"
    for split, rows in table.groupby("split", sort=False):
        style = figures.STYLES[str(split)]
        norms, diffs = [], []
        for norm, sign in (("L1", "₁"), ("L2", "₂")):
            sizes = [
                column_line(rows, f"model_a_norm_{norm}", base, figures.BASE, style),
                column_line(rows, f"model_b_norm_{norm}", changed, colour, style),
            ]
            change = [column_line(rows, f"mean_dh_{norm}", mean, colour, style)]
            norms.append(Panel(f"{norm} norm", f"‖h‖{sign}", sizes, from_zero=True, xlabel=STATES))
            diffs.append(Panel(f"{norm} norm", f"‖Δh‖{sign}", change, 0.0, xlabel=STATES))
        relative = [column_line(rows, "mean_dh_rel", mean, colour, style)]
        diffs.append(Panel("Relative to the base", "‖Δh‖₂ / ‖h‖₂", relative, 0.0, xlabel=STATES))
        heading = f"Size of hidden states on {split} texts: {title}"
        run.figure(f"activation_norms_{split}", layer_figure(heading, norms))
        heading = f"How far hidden states moved on {split} texts: {title}"
        run.figure(f"activation_diffs_{split}", layer_figure(heading, diffs, 3, legend="below"))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Draw each comparison, or the table that was named."""
    from model_diffs.core import figures

    for planned in todo:
        own = planned.folder.parent / "activation_stats/activation_stats.csv"
        path = Path(options.activation_csv or own)
        hint = "collect_activation_norms.py makes it"
        table = read_table(path, hint, ("layer",), DRAWN, {"split": figures.STYLES})
        with open_run(planned) as run:
            run.reads(path)
            draw(run, table)


if __name__ == "__main__":
    run_step(__name__)
