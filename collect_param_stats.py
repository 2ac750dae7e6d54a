"""Step 1. How large is the intervention in weight space, where is it, and what shape has it?

Both checkpoints are read in lockstep, one matrix at a time; the change dW = W_B - W_A is formed in
fp32 and measured by its Frobenius norm, its largest singular value (to a bounded error), and their
ratio, the stable rank. The share of entries that changed and the floor set by rounding tell a
change from noise. `--dtype auto` computes in fp32 on every device.

    uv run collect_param_stats.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu
    uv run collect_param_stats.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-e2e-strong-filter --empirical-rank

Writes <outroot>/<A>__to__<B>/param_stats/{per_matrix,per_layer,per_component}.csv.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model_diffs.core import arguments, results
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    from model_diffs.diagnostics.param_stats import Settings
    from model_diffs.models.checkpoints import Checkpoint

FOLDER = "param_stats"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_comparison(parser)
    arguments.add_compute(parser)
    group = parser.add_argument_group("spectra")
    group.add_argument(
        "--empirical-rank", action="store_true", help="add ranks that need all singular values"
    )
    group.add_argument(
        "--empirical-threshold",
        type=arguments.fraction,
        default=0.99,
        help="share of the energy that the empirical rank holds",
    )
    group.add_argument(
        "--tol", type=arguments.positive_float, default=1e-3, help="relative error of σ₁"
    )
    group.add_argument(
        "--max-iters", type=arguments.positive_int, default=200, help="Lanczos steps at most"
    )
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per comparison."""
    return arguments.comparison_runs(options, FOLDER)


def settings_of(options: argparse.Namespace) -> "Settings":
    """Device, precision and stopping rule of the spectral norms."""
    import torch

    from model_diffs.diagnostics.param_stats import Settings
    from model_diffs.models.devices import DTYPES, pick_device

    return Settings(
        pick_device(options.device),
        torch.float32 if options.dtype == "auto" else DTYPES[options.dtype],
        options.tol,
        options.max_iters,
        options.seed,
        options.empirical_threshold if options.empirical_rank else None,
    )


def write(
    run: results.Run, base: "Checkpoint", changed: "Checkpoint", rows: list[dict[str, Any]]
) -> None:
    """The three tables of one comparison, and the facts behind them."""
    from model_diffs.diagnostics import param_stats

    run.reads(*base.files, *changed.files)
    run.table("per_matrix", rows)
    run.table("per_layer", param_stats.per_layer(rows))
    run.table("per_component", param_stats.per_component(rows))
    inside = {matrix.tensor for matrix in base.matrices()}
    run.record(
        models={one.model: one.identity() for one in (base, changed)},
        matrices=len(rows),
        matrices_changed=sum(row["dW_fro"] > 0 for row in rows),
        tensors_skipped_not_matrices=len(base.names) - len(inside),
    )


def main() -> None:
    """Compare what is not complete, the base read once for all."""
    options = parse_arguments()
    todo = results.pending(planned_runs(options), options.force)
    if not todo:
        return
    from contextlib import ExitStack

    from model_diffs.diagnostics.param_stats import compare
    from model_diffs.models.checkpoints import Checkpoint
    from model_diffs.models.devices import dtype_name

    settings = settings_of(options)
    base = Checkpoint.open(options.model_a)
    changed = [Checkpoint.open(planned.model_b) for planned in todo]
    with ExitStack() as stack:
        # Opened before the work: an unwritable place should not cost an hour first.
        open_runs = [stack.enter_context(results.open_run(planned)) for planned in todo]
        for run, other, rows in zip(
            open_runs, changed, compare(base, changed, settings), strict=True
        ):
            write(run, base, other, rows)
            run.record(device=str(settings.device), dtype=dtype_name(settings.dtype))


if __name__ == "__main__":
    arguments.run_script(main)
