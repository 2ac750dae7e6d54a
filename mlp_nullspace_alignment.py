"""Step 10. Do MLP updates work inside the subspaces that W uses, or beside them?

Of each MLP matrix of the base, the left and right singular vectors that hold --rank-threshold of
its energy are one part of the output and input space, the rest the other. The energy of dW is
divided between them, beside the division that a random update of that shape would have, and the
one that the difference to an unrelated matrix with W's spectrum would have.

    uv run mlp_nullspace_alignment.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu
    uv run mlp_nullspace_alignment.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --device cuda

Writes <outroot>/<A>__to__<B>/mlp_nullspace/{mlp_nullspace_metrics.csv, layer_nullspace_summary.csv,
mlp_nullspace_alignment.png, summary.json}.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from model_diffs.core.options import Comparison, Device, Figures, fraction, option
from model_diffs.core.results import PlannedRun, Run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Measure, Step, Table, title_of

if TYPE_CHECKING:
    import pandas as pd

STEP = Step(
    number=10,
    folder="mlp_nullspace",
    question="Do MLP updates work inside the subspaces that W uses, or beside them?",
    memory="model_diffs.diagnostics.memory:SUBSPACES",
    processes=True,
    version=2,
    tables=(Table("mlp_nullspace_metrics"), Table("layer_nullspace_summary")),
    figures=(Figure("mlp_nullspace_alignment", "Inside W's own spaces", "geometry"),),
    measures=(
        Measure(
            "nullspace_ratio",
            axis="geometry",
            table="mlp_nullspace_metrics",
            column="nullspace_energy",
            label="null-space energy",
            meaning="Energy that the MLPs' ΔW writes outside W's column space, over that of a "
            "random ΔW. About 0.5 where the two models' weights are unrelated.",
            relative_to="random_nullspace_energy",
            weights=("update_norm", "update_norm"),
            may_be_empty=True,
            undefined="no MLP matrix changed, or the base's leave nothing outside their "
            "column spaces",
            logarithmic=True,
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Device, Figures):
    """Subspaces."""

    rank_threshold: float = option(
        0.99, "share of W's energy that its top subspaces hold", check=fraction
    )


def draw(run: Run, table: "pd.DataFrame") -> None:
    """Energy outside W's subspaces on both sides, size of the update, rank before and after."""
    from model_diffs.core.figures import layer_figure
    from model_diffs.diagnostics.weight_results import component_panel

    panel = partial(component_panel, table.rename(columns={"type": "component"}))
    shares, nulls = "share of ‖ΔW‖²", "dotted: random ΔW, dashed: unrelated weights"
    size = r"$\|\Delta W\|_F \;/\; \|W\|_F$"
    output, input_ = (
        panel(
            f"{title}\n{nulls}",
            shares,
            column,
            f"random_{column}",
            f"unrelated_{column}",
            from_zero=True,
        )
        for title, column in (
            ("Output side: outside W's column space", "nullspace_energy"),
            ("Input side: outside its row space", "input_nullspace_energy"),
        )
    )
    updates = panel("Size of the update", size, "relative_update_size", from_zero=True)
    gained = panel("Rank gained", "rank of W_B − rank of W_A", "rank_increase", reference=0.0)
    title = f"MLP updates against the base's subspaces: {title_of(run.planned)}"
    figure = layer_figure(title, [output, input_, updates, gained], legend="below")
    run.figure("mlp_nullspace_alignment", figure)


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure the comparisons; the base is read once for all of them."""
    from model_diffs.diagnostics import mlp_nullspace, subspaces, weight_results
    from model_diffs.models.devices import pick_device

    device = pick_device(options.device)
    with weight_results.open_comparisons(todo) as (base, changed, runs):
        measure = partial(mlp_nullspace.alignment_row, threshold=options.rank_threshold)
        matrices = subspaces.mlp_matrices(base)
        measured = subspaces.measure_changes(base, changed, matrices, device, measure)
        for run, rows in zip(runs, measured, strict=True):
            table = run.table("mlp_nullspace_metrics", rows)
            run.table("layer_nullspace_summary", mlp_nullspace.layer_rows(rows))
            draw(run, table)
            means = weight_results.summary(table, mlp_nullspace.SUMMARISED, "update_norm", "type")
            run.document("summary", means)
            run.record(matrices=len(rows), device=str(device))


if __name__ == "__main__":
    run_step(__name__)
