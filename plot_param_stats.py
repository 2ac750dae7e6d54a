"""Step 2. In which blocks did the weights change, how strongly, and with what rank?

Draws step 1's tables, separately for attention and MLP: relative size of the change per block
(layer locality), its stable rank, its relative spectral norm, and its rank beside that of the
weights (with the 99 % rank where step 1 ran with --empirical-rank). No matrix is read again.

    uv run plot_param_stats.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered
    uv run plot_param_stats.py --per-layer-csv per_layer.csv --outdir figures --title "Base → RMU"

Writes <outroot>/<A>__to__<B>/param_plots/{layer_locality,stable_rank,spectral_norm,
rank_comparison}_{attn,mlp}.png. An unchanged block has no rank.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core.options import ComparisonOrTable, Figures, option
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Step, title_of
from model_diffs.core.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

STEP = Step(
    number=2,
    folder="param_plots",
    question="In which blocks did the weights change, how strongly, and with what rank?",
    reads=("param_stats",),
    figures=(
        Figure("layer_locality_mlp", "‖ΔW‖/‖W‖ by block, MLP", "magnitude"),
        Figure("layer_locality_attn", "‖ΔW‖/‖W‖ by block, attention", "magnitude"),
        Figure("stable_rank_mlp", "Stable rank by block, MLP", "geometry"),
        Figure("stable_rank_attn", "Stable rank by block, attention"),
        Figure("spectral_norm_mlp", "Largest singular value by block, MLP"),
        Figure("spectral_norm_attn", "Largest singular value by block, attention"),
        Figure("rank_comparison_mlp", "Rank of the change and of the weights by block, MLP"),
        Figure("rank_comparison_attn", "Rank of the change and of the weights by block, attention"),
    ),
    version=2,  # ranks are compared without --empirical-rank too
)

SIZE, RANK, NORM = "dW_fro_layer_rel", "mean_dW_stable_rank", "max_dW_spectral_rel"
EMPIRICAL, BASES = "mean_dW_empirical_rank", "mean_W_stable_rank"


@dataclass(frozen=True, kw_only=True)
class Options(ComparisonOrTable, Figures):
    """Table."""

    per_layer_csv: str | None = option(None, "draw this per_layer.csv by itself")


def draw(run: Run, table: "pd.DataFrame", title: str) -> None:
    """All figures of one comparison; a group without changed matrices has no rank to draw."""
    from model_diffs.core.figures import ATTENTION, MLP, Panel, column_line, layer_figure

    stable = r"$\|\Delta W\|_F^2 \;/\; \sigma_1(\Delta W)^2$, mean of changed matrices"
    figures = [  # file, heading, label of the axis, column → label of its line
        ("layer_locality", "Size", r"$\|\Delta W\|_F \;/\; \|W\|_F$", {SIZE: ""}),
        ("stable_rank", "Stable rank", stable, {RANK: ""}),
        ("spectral_norm", "Strongest direction", "max σ₁(ΔW) / max σ₁(W)", {NORM: ""}),
    ]
    names = {RANK: "stable rank of ΔW", BASES: "stable rank of W", EMPIRICAL: "99 % rank of ΔW"}
    ranks = {column: name for column, name in names.items() if column in table}
    if len(ranks) > 1:
        figures.append(("rank_comparison", "Ranks", "rank, mean of changed matrices", ranks))
    for group, name, colour in (("attn", "attention", ATTENTION), ("mlp", "MLP", MLP)):
        rows = table[table["group"] == group]
        for file, heading, ylabel, columns in figures:
            if rows[next(iter(columns))].isna().all():
                continue
            lines = [
                column_line(rows, column, label or name, colour, style)
                for (column, label), style in zip(columns.items(), ("-", ":", "--"), strict=False)
            ]
            heading = f"{heading} of the weight change, {name}: {title}"
            panel = Panel("", ylabel, lines, from_zero=True)
            run.figure(f"{file}_{group}", layer_figure(heading, [panel]))


def with_bases_rank(table: "pd.DataFrame", matrices: Path) -> "pd.DataFrame":
    """The table with the mean stable rank of W over the changed matrices of each block and group,
    from per_matrix.csv, where that is there."""
    if not matrices.is_file():
        return table
    each = read_table(matrices, "collect_param_stats.py makes it", ("layer",), (), {"group": ()})
    if not {"dW_stable_rank", "W_stable_rank"} <= set(each):
        return table
    changed = each[each["dW_stable_rank"].notna()].groupby(["layer", "group"])["W_stable_rank"]
    return table.merge(
        changed.mean().rename(BASES).reset_index(), on=["layer", "group"], how="left"
    )


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Draw each comparison."""
    for planned in todo:
        source = Path(options.per_layer_csv or planned.folder.parent / "param_stats/per_layer.csv")
        hint, drawn = "collect_param_stats.py makes it", (SIZE, RANK, NORM)
        table = read_table(source, hint, ("layer",), drawn, {"group": ()})
        matrices = source.with_name("per_matrix.csv")
        table = with_bases_rank(table, matrices)
        with open_run(planned) as run:
            run.reads(source, *([matrices] if BASES in table else []))
            draw(run, table, title_of(planned))


if __name__ == "__main__":
    run_step(__name__)
