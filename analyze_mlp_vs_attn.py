"""Step 6. Did the intervention change what is stored (MLP) or how it is routed (attention)?

Gathers step 1's matrices by block: the Frobenius norm of the change in the MLP and in attention,
their ratio, the same relative to the base's weights, and the mean stable ranks.

    uv run analyze_mlp_vs_attn.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered
    uv run analyze_mlp_vs_attn.py --per-matrix-csv per_matrix.csv --outdir mlp_vs_attn \\
        --title "Base → RMU"

Writes <outroot>/<A>__to__<B>/mlp_attn_analysis/mlp_attn_summary.csv, mlp_vs_attn_magnitude.png and
mlp_vs_attn_detailed.png. Ratio 0: only attention changed; inf: only the MLP; empty: neither.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.core.errors import BadInput
from model_diffs.core.options import ComparisonOrTable, Figures, option
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Step, Table, title_of
from model_diffs.core.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

STEP = Step(
    number=6,
    folder="mlp_attn_analysis",
    question="Did the intervention change what is stored (MLP) or how it is routed (attention)?",
    reads=("param_stats",),
    tables=(Table("mlp_attn_summary"),),
    figures=(
        Figure("mlp_vs_attn_magnitude", "MLP beside attention", "location"),
        Figure("mlp_vs_attn_detailed", "The same in detail", "location"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(ComparisonOrTable, Figures):
    """Table."""

    per_matrix_csv: str | None = option(None, "use this per_matrix.csv by itself")


def ratio(mlp: float | None, attn: float | None) -> float | None:
    """MLP over attention: 0 where only attention changed, inf where only the MLP did, else None."""
    if mlp is None or attn is None or (mlp == 0 and attn == 0):
        return None
    return mlp / attn if attn else math.inf


def sizes(matrices: "pd.DataFrame") -> tuple[float, float | None, float | None]:
    """‖ΔW‖ of these matrices together, the same over ‖W‖, and the mean stable rank of ΔW.

    None where W is zero; the rank where no matrix changed.
    """
    size, whole = math.hypot(*matrices["dW_fro"]), math.hypot(*matrices["W_fro"])
    ranks = matrices["dW_stable_rank"].dropna()
    return size, size / whole if whole else None, float(ranks.mean()) if len(ranks) else None


def summarise(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """One row per block, in order; matrices outside blocks are left out."""
    found = []
    for layer, rows in table[table["layer"] >= 0].groupby("layer"):
        mlp, mlp_rel, mlp_rank = sizes(rows[rows["group"] == "mlp"])
        attn, attn_rel, attn_rank = sizes(rows[rows["group"] == "attn"])
        row = {
            "layer": layer,
            "mlp_fro": mlp,
            "attn_fro": attn,
            "ratio_mlp_attn": ratio(mlp, attn),
            "mlp_fro_rel": mlp_rel,
            "attn_fro_rel": attn_rel,
            "ratio_rel": ratio(mlp_rel, attn_rel),
            "mlp_stable_rank": mlp_rank,
            "attn_stable_rank": attn_rank,
        }
        found.append(row)
    return found


def draw(run: Run, table: "pd.DataFrame", title: str) -> None:
    """Size per block and the ratio; then relative size, its ratio, stable ranks and totals."""
    from model_diffs.core.figures import ATTENTION, MLP, Panel, column_line, layer_figure

    for group in ("mlp", "attn"):
        table[f"{group}_total"] = (table[f"{group}_fro"] ** 2).cumsum() ** 0.5

    def both(heading: str, ylabel: str, column: str) -> Panel:
        lines = [
            column_line(table, f"mlp_{column}", "MLP", MLP),
            column_line(table, f"attn_{column}", "attention", ATTENTION),
        ]
        return Panel(heading, ylabel, lines, from_zero=True)

    def quotient(heading: str, column: str) -> Panel:
        # A log axis cannot show zero and inf; the table has them.
        finite = table[(table[column] > 0) & (table[column] < math.inf)]
        line = column_line(finite, column, "MLP / attention", "#444444")
        return Panel(heading, "ratio, log axis", [line], 1.0, "equal", log=True)

    size = r"$\|\Delta W\|_F$"
    magnitude = [
        both("Size of the weight change", size, "fro"),
        quotient("MLP over attention", "ratio_mlp_attn"),
    ]
    detailed = [
        both("Relative to the base's weights", r"$\|\Delta W\|_F \;/\; \|W\|_F$", "fro_rel"),
        quotient("Relative change, MLP over attention", "ratio_rel"),
        both("Stable rank of the change", "mean of changed matrices", "stable_rank"),
        both("Total up to each block", f"{size}, blocks 0 to here", "total"),
    ]
    run.figure("mlp_vs_attn_magnitude", layer_figure(f"MLP and attention: {title}", magnitude))
    run.figure("mlp_vs_attn_detailed", layer_figure(f"MLP and attention: {title}", detailed))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Analyse each comparison."""
    for planned in todo:
        source = Path(
            options.per_matrix_csv or planned.folder.parent / "param_stats/per_matrix.csv"
        )
        hint, numbers = "collect_param_stats.py makes it", ("layer", "dW_fro", "W_fro")
        matrices = read_table(source, hint, numbers, ("dW_stable_rank",), {"group": ()})
        blocks = summarise(matrices)
        if not blocks:
            raise BadInput(f"{source}: no matrix of a block in it")
        with open_run(planned) as run:
            run.reads(source)
            table = run.table("mlp_attn_summary", blocks)
            draw(run, table.astype(float), title_of(planned))


if __name__ == "__main__":
    run_step(__name__)
