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

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model_diffs.core import arguments, results
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "null_space_analysis"
SUMMARISED = (
    *("effective_rank", "top10_variance_ratio", "singular_value_decay", "singular_value_ratio"),
    *("subspace_alignment", "alignment_right", "random_alignment", "random_alignment_right"),
    *("grassmann_distance", "grassmann_right"),
)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_comparison(parser)
    arguments.add_figures(parser)
    group = parser.add_argument_group("matrices and subspaces")
    group.add_argument(
        "--num-samples", type=arguments.natural, default=50, help="matrices drawn; 0 = all"
    )
    group.add_argument(
        "--k", type=arguments.positive_int, default=20, help="dimension of the compared subspaces"
    )
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu), or a torch device")
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per comparison."""
    return arguments.comparison_runs(options, FOLDER)


def summary(table: "pd.DataFrame", available: int) -> dict[str, Any]:
    """Counts, and means over the changed matrices, in all and by component."""

    def means(rows: "pd.DataFrame") -> dict[str, Any]:
        found = rows[list(SUMMARISED)].astype(float).mean()
        return {"matrices": len(rows), **{str(k): float(v) for k, v in found.dropna().items()}}

    changed = table[table["max_singular_value"] > 0]
    return {
        "matrices": len(table),
        "matrices_available": available,
        "matrices_changed": len(changed),
        "means_over_changed_matrices": means(changed) if len(changed) else {},
        "by_component": {
            component: means(changed[changed["component"] == component])
            for component in map(str, changed["component"].unique())
        },
    }


def draw(run: results.Run, table: "pd.DataFrame") -> None:
    """Four panels over layers, a line per component; several of a kind in a layer are averaged."""
    from model_diffs.core.figures import COMPONENT_COLOURS, Line, Panel, column_line, layer_figure

    columns = ["effective_rank", "top10_variance_ratio", "subspace_alignment", "alignment_right"]
    random = ["random_alignment", "random_alignment_right"]
    numbers = table[["layer", "component", *columns, *random]].copy()
    numbers[[*columns, *random]] = numbers[[*columns, *random]].astype(float)
    means = numbers.groupby(["component", "layer"], sort=False).mean().reset_index()
    means = means.sort_values("layer", kind="stable")

    def lines(column: str, chance: str = "") -> list[Line]:
        found = []
        for component, colour in COMPONENT_COLOURS.items():
            rows = means[means["component"] == component]
            found.append(column_line(rows, column, component, colour))
            if chance:
                found.append(column_line(rows, chance, "", colour, ":"))
        return [line for line in found if line.x]

    xlabel = "block (−1: outside blocks)" if (table["layer"] < 0).any() else "block"
    dotted = "mean cosine (dotted: random)"
    panels = [
        Panel("Rank of the change", "singular values for 99 % of ‖ΔW‖²", lines(columns[0])),
        Panel("Weight of its top 10 directions", "share of ‖ΔW‖²", lines(columns[1])),
        Panel("Output directions kept (left subspaces)", dotted, lines(columns[2], random[0])),
        Panel("Input directions kept (right subspaces)", dotted, lines(columns[3], random[1])),
    ]
    panels = [panel._replace(xlabel=xlabel, from_zero=True) for panel in panels]
    title = f"Spectrum and subspaces of sampled matrices: {arguments.title_of(run.planned)}"
    run.figure("null_space_visualization", layer_figure(title, panels, legend="below"))


def main() -> None:
    """Measure what is not complete, the base read once for all comparisons."""
    options = parse_arguments()
    todo = results.pending(planned_runs(options), options.force)
    if not todo:
        return
    from contextlib import ExitStack

    from model_diffs.diagnostics import subspaces
    from model_diffs.models.checkpoints import Checkpoint
    from model_diffs.models.devices import pick_device

    device = pick_device(options.device)
    base = Checkpoint.open(options.model_a)
    changed = [Checkpoint.open(planned.model_b) for planned in todo]
    available = base.matrices()
    chosen = subspaces.sample_matrices(available, options.num_samples, options.seed)
    if len(chosen) < options.num_samples:
        print(f"{options.model_a}: {options.num_samples} matrices asked for, it has {len(chosen)}")
    with ExitStack() as stack:
        # Opened before the work: an unwritable place should not cost an hour first.
        open_runs = [stack.enter_context(results.open_run(planned)) for planned in todo]
        measured = subspaces.over_changes(
            base,
            changed,
            chosen,
            lambda W_A: subspaces.prepare_subspaces(W_A, options.k),
            lambda matrix, base_of, W_B, dW: subspaces.subspace_row(
                matrix, base_of, W_B, dW, options.seed
            ),
            device,
        )
        for run, other, rows in zip(open_runs, changed, measured, strict=True):
            table = run.table("null_space_results", rows)
            draw(run, table)
            run.document("summary", summary(table, len(available)))
            run.reads(*base.files, *other.files)
            run.record(models={"a": base.identity(), "b": other.identity()}, device=str(device))
            run.record(matrices=len(rows), matrices_available=len(available))


if __name__ == "__main__":
    arguments.run_script(main)
