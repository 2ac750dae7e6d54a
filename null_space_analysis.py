"""Step 7. Is the weight change low-rank, and did the matrices' principal subspaces turn?

Matrices are drawn evenly over layers and components. Of each change dW all singular values are
computed; between W_A and W_B the principal angles of the leading left and right singular subspaces,
beside what random subspaces of that size would give.

    uv run null_space_analysis.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu
    uv run null_space_analysis.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-e2e-strong-filter --num-samples 50 --device cuda

Writes <outroot>/<A>__to__<B>/null_space_analysis/{null_space_results.csv,
null_space_visualization.png, summary.json}.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from model_diffs.core.options import Comparison, Device, Figures, natural, option, positive
from model_diffs.core.results import PlannedRun, Run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Measure, Step, Table, title_of

if TYPE_CHECKING:
    import pandas as pd

STEP = Step(
    number=7,
    folder="null_space_analysis",
    question="Is the weight change low-rank, and did the matrices' principal subspaces turn?",
    memory="model_diffs.diagnostics.memory:SUBSPACES",
    processes=True,
    version=2,
    tables=(Table("null_space_results"),),
    figures=(Figure("null_space_visualization", "Rank and angles", "geometry"),),
    measures=(
        Measure(
            "effective_rank",
            axis="geometry",
            table="null_space_results",
            column="effective_rank",
            unit="rank",
            label="99 %-energy rank of ΔW",
            meaning="Directions with 99 % of a matrix's ‖ΔW‖²; mean over the blocks' matrices, "
            "weighted by ‖ΔW‖².",
            layers="blocks",
            weights=("dW_fro", "dW_fro"),
            weights_from="param_stats/per_matrix",
            may_be_empty=True,
            undefined="no matrix of a block changed",
            logarithmic=True,
        ),
        Measure(
            "top10_share",
            axis="geometry",
            table="null_space_results",
            column="top10_variance_ratio",
            unit="share",
            label="top ten directions",
            meaning="Share of a matrix's ‖ΔW‖² in its ten largest directions; mean over the "
            "blocks' matrices, weighted by ‖ΔW‖².",
            layers="blocks",
            weights=("dW_fro", "dW_fro"),
            weights_from="param_stats/per_matrix",
            may_be_empty=True,
            undefined="no matrix of a block changed",
        ),
        Measure(
            "subspace_alignment",
            axis="geometry",
            table="null_space_results",
            column="subspace_alignment",
            unit="share",
            label="subspaces kept",
            meaning="Mean cosine of the angles between the leading left subspaces of W before and "
            "after, over the blocks' matrices.",
            layers="blocks",
            undefined="no matrix of a block was analysed",
            unchanged=1.0,
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Device, Figures):
    """Matrices and subspaces."""

    num_samples: int = option(50, "matrices to sample; 0 = all", check=natural)
    k: int = option(20, "dimension of the compared subspaces", check=positive)


def draw(run: Run, table: "pd.DataFrame") -> None:
    """Four panels over layers, one line per component."""
    from model_diffs.core.figures import layer_figure
    from model_diffs.diagnostics.weight_results import component_panel

    panel = partial(component_panel, table, from_zero=True)
    rank, dotted = "singular values for 99 % of ‖ΔW‖²", "mean cosine (dotted: random)"
    left, right = (
        "Output directions kept (left subspaces)",
        "Input directions kept (right subspaces)",
    )
    left, right = "Output directions kept (left", "Input directions kept (right"
    panels = [
        panel("Rank of the change", rank, "effective_rank"),
        panel("Weight of its top 10 directions", "share of ‖ΔW‖²", "top10_variance_ratio"),
        panel(f"{left} subspaces)", dotted, "subspace_alignment", "random_alignment"),
        panel(f"{right} subspaces)", dotted, "alignment_right", "random_alignment_right"),
    ]
    title = f"Spectrum and subspaces of sampled matrices: {title_of(run.planned)}"
    run.figure("null_space_visualization", layer_figure(title, panels, legend="below"))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure the comparisons; the base is read once for all of them."""
    from model_diffs.diagnostics import subspaces, weight_results
    from model_diffs.models.devices import pick_device

    device = pick_device(options.device)
    with weight_results.open_comparisons(todo) as (base, changed, runs):
        available = base.matrices()
        chosen = subspaces.sample_matrices(available, options.num_samples, options.seed)
        if len(chosen) < options.num_samples:
            asked = f"{options.num_samples} matrices asked for"
            print(f"{options.model_a}: {asked}, it has {len(chosen)}")
        measure = partial(subspaces.subspace_row, k=options.k, seed=options.seed)
        measured = subspaces.measure_changes(base, changed, chosen, device, measure, options.k)
        for run, rows in zip(runs, measured, strict=True):
            table = run.table("null_space_results", rows)
            draw(run, table)
            counts = {"matrices": len(rows), "matrices_available": len(available)}
            means = weight_results.summary(
                table, subspaces.SUMMARISED, "max_singular_value", "component"
            )
            run.document("summary", {**counts, **means})
            run.record(**counts, device=str(device))


if __name__ == "__main__":
    run_step(__name__)
