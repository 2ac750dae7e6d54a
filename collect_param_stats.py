"""Step 1. How large is the intervention in weight space, where is it, and what shape has it?

Both checkpoints are read in lockstep, one matrix at a time. The change dW = W_B - W_A is formed in
fp32 and measured by its Frobenius norm, its largest singular value (with an error bound) and their
ratio, the stable rank; the share of changed entries and the rounding floor tell change from noise.
`--dtype auto` means fp32 on every device.

    uv run collect_param_stats.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu
    uv run collect_param_stats.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-e2e-strong-filter --empirical-rank

Writes <outroot>/<A>__to__<B>/param_stats/{per_matrix,per_layer,per_component}.csv.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_diffs.core.options import Comparison, Compute, fraction, option, positive
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import run_step
from model_diffs.core.step import Measure, Step, Table

if TYPE_CHECKING:
    from model_diffs.core.tables import Place
    from model_diffs.stats.estimates import Estimate


def half_depth(place: "Place", measure: "Measure") -> "Estimate":
    """Depth at which half of the blocks' Σ‖ΔW‖² is reached: 0 before the first, 1 after the last.

    Within a block ‖ΔW‖² is taken as spread evenly.
    """
    import numpy as np

    from model_diffs.core.tables import Absent, Source
    from model_diffs.stats.estimates import Estimate

    path, column = place.path(measure.table), measure.column
    rows = place.tables.table(path, ["layer", column], ["group"], ["layer", "group"])
    rows = rows[rows["layer"] >= 0]
    energy = (rows[column] ** 2).groupby(rows["layer"]).sum().sort_index()
    blocks = len(energy)
    if list(energy.index) != list(range(blocks)) or not blocks:
        raise Absent(f"failed, {path} has not every block", defect=True)
    if energy.sum() == 0:
        raise Absent("no matrix of a block changed")
    sizes = energy.to_numpy()
    reached, half = np.cumsum(sizes), energy.sum() / 2
    block = int(np.argmax(reached >= half))
    inside = 1 - (reached[block] - half) / sizes[block]
    source = Source(path, column, f"where Σ {column}² over layer 0-{blocks - 1} reaches half")
    return Estimate(float(block + inside) / blocks, source)


STEP = Step(
    number=1,
    folder="param_stats",
    question="How large is the intervention in weight space, where is it, and what shape has it?",
    memory="model_diffs.diagnostics.memory:WEIGHTS",
    processes=True,
    version=3,  # the error of a largest singular value bounds the largest, not just some value
    tables=(Table("per_matrix"), Table("per_layer"), Table("per_component")),
    measures=(
        Measure(
            "relative_change",
            axis="magnitude",
            table="per_matrix",
            column="dW_fro",
            label="relative ‖ΔW‖",
            meaning="Norm of the weight change over that of the base's weights, all matrices.",
            norm=True,
            relative_to="W_fro",
            undefined="every matrix of the base is zero",
            unchanged=0.0,
        ),
        Measure(
            "changed_share",
            axis="magnitude",
            table="per_matrix",
            column="changed_fraction",
            unit="share",
            label="changed entries",
            meaning="Share of the matrices' entries whose stored value differs from the base's.",
            weights=("shape0", "shape1"),
            unchanged=0.0,
        ),
        Measure(
            "mlp_attention_ratio",
            axis="location",
            table="per_layer",
            column="dW_fro_layer",
            label="MLP over attention",
            meaning="Relative ‖ΔW‖ of all MLPs over that of all attention.",
            layers="blocks",
            where={"group": "mlp"},
            over={"group": "attn"},
            norm=True,
            relative_to="W_fro_layer",
            undefined="MLPs or attention did not change: there is no ratio",
            logarithmic=True,
        ),
        Measure(
            "half_depth",
            axis="location",
            table="per_layer",
            column="dW_fro_layer",
            unit="share",
            label="depth of half ‖ΔW‖²",
            meaning="Depth above which half of the blocks' ‖ΔW‖² lies, as a share of all blocks.",
            compute=half_depth,
            computed="depth at which the running sum of `dW_fro_layer`² over blocks reaches half; "
            "linear within a block",
        ),
        Measure(
            "stable_rank",
            axis="geometry",
            table="per_matrix",
            column="dW_stable_rank",
            unit="rank",
            label="stable rank of ΔW",
            meaning="‖ΔW‖² over its largest squared singular value; mean over the blocks' "
            "matrices, weighted by ‖ΔW‖².",
            layers="blocks",
            weights=("dW_fro", "dW_fro"),
            may_be_empty=True,
            undefined="no matrix of a block changed",
            logarithmic=True,
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Compute):
    """Spectra."""

    empirical_rank: bool = option(False, "add 99 %-energy ranks, which need all singular values")
    empirical_threshold: float = option(
        0.99, "share of the energy that the empirical rank holds", check=fraction
    )
    tol: float = option(1e-3, "relative error of the largest singular value", check=positive)
    max_iters: int = option(200, "maximum Lanczos iterations per matrix", check=positive)


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Compare the models; the base is read once for all of them."""
    import torch

    from model_diffs.diagnostics import param_stats
    from model_diffs.diagnostics.weight_results import open_comparisons
    from model_diffs.models.devices import DTYPES, dtype_name, pick_device

    settings = param_stats.Settings(
        device=pick_device(options.device),
        dtype=torch.float32 if options.dtype == "auto" else DTYPES[options.dtype],
        tol=options.tol,
        max_iterations=options.max_iters,
        seed=options.seed,
        empirical_threshold=options.empirical_threshold if options.empirical_rank else None,
    )
    with open_comparisons(todo) as (base, changed, runs):
        tensors = {matrix.tensor for matrix in base.matrices()}
        for run, rows in zip(runs, param_stats.compare(base, changed, settings), strict=True):
            run.table("per_matrix", rows)
            run.table("per_layer", param_stats.per_layer(rows))
            run.table("per_component", param_stats.gather(rows, "component"))
            run.record(
                matrices=len(rows),
                matrices_changed=sum(row["dW_fro"] > 0 for row in rows),
                tensors_skipped_not_matrices=len(base.entries) - len(tensors),
                device=str(settings.device),
                dtype=dtype_name(settings.dtype),
            )


if __name__ == "__main__":
    run_step(__name__)
