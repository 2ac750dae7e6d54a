"""Step 10. Do MLP updates work inside the subspaces that W uses, or beside them?

Of each MLP matrix of the base, the left and right singular vectors that hold --rank-threshold of
its energy are one part of the output and input space, the rest the other. The energy of dW is
divided between them, beside the division that a random update of that shape would have.

    uv run mlp_nullspace_alignment.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu
    uv run mlp_nullspace_alignment.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --device cuda

Writes <outroot>/<A>__to__<B>/mlp_nullspace/{mlp_nullspace_metrics.csv, layer_nullspace_summary.csv,
mlp_nullspace_alignment.png, summary.json}.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model_diffs.core import arguments, results
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.diagnostics.mlp_nullspace import AlignmentRow
    from model_diffs.models.checkpoints import Checkpoint

FOLDER = "mlp_nullspace"
SUMMARISED = (
    *("nullspace_energy", "random_nullspace_energy"),
    *("input_nullspace_energy", "random_input_nullspace_energy"),
    *("rank_increase", "relative_update_size"),
)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_comparison(parser)
    arguments.add_figures(parser)
    group = parser.add_argument_group("subspaces")
    group.add_argument(
        "--rank-threshold",
        type=arguments.fraction,
        default=0.99,
        help="share of W's energy that its top subspaces hold",
    )
    group.add_argument("--device", default="auto", help="auto (cuda, mps, cpu), or a torch device")
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per comparison."""
    return arguments.comparison_runs(options, FOLDER)


def summary(table: "pd.DataFrame") -> dict[str, Any]:
    """Counts, and means over the changed matrices, in all and by type."""

    def means(rows: "pd.DataFrame") -> dict[str, Any]:
        found = rows[list(SUMMARISED)].astype(float).mean()
        return {"matrices": len(rows), **{str(k): float(v) for k, v in found.dropna().items()}}

    changed = table[table["update_norm"] > 0]
    return {
        "matrices": len(table),
        "matrices_changed": len(changed),
        "means_over_changed_matrices": means(changed) if len(changed) else {},
        "by_type": {
            kind: means(changed[changed["type"] == kind])
            for kind in map(str, changed["type"].unique())
        },
    }


def draw(run: results.Run, table: "pd.DataFrame") -> None:
    """Energy outside W's subspaces on both sides, rank before and after, size of the update."""
    from model_diffs.core.figures import COMPONENT_COLOURS, Line, Panel, column_line, layer_figure
    from model_diffs.diagnostics.subspaces import MLP_COMPONENTS

    keys = ["type", "layer"]
    numbers = table.drop(columns=["name", "shape"]).set_index(keys).astype(float)
    means = numbers.groupby(keys, sort=False).mean().reset_index()

    def lines(column: str, dotted: str = "") -> list[Line]:
        found = []
        for component in MLP_COMPONENTS:
            rows = means[means["type"] == component]
            line = column_line(rows, column, component, COMPONENT_COLOURS[component])
            if not line.x:
                continue
            found.append(line)
            if dotted:
                found.append(column_line(rows, dotted, "", COMPONENT_COLOURS[component], ":"))
        return found

    sides = {
        "": "Output side: outside W's column space",
        "input_": "Input side: outside its row space",
    }
    panels = [
        Panel(
            title,
            "share of ‖ΔW‖² (dotted: random)",
            lines(f"{side}nullspace_energy", f"random_{side}nullspace_energy"),
        )
        for side, title in sides.items()
    ]
    panels += [
        Panel(
            "Size of the update", r"$\|\Delta W\|_F \;/\; \|W\|_F$", lines("relative_update_size")
        ),
        Panel("Rank gained", "rank of W_B − rank of W_A", lines("rank_increase"), 0.0),
    ]
    drawn = [panel._replace(from_zero=panel.reference is None) for panel in panels]
    title = f"MLP updates against the base's subspaces: {arguments.title_of(run.planned)}"
    run.figure("mlp_nullspace_alignment", layer_figure(title, drawn, legend="below"))


def write(
    run: results.Run, base: "Checkpoint", changed: "Checkpoint", rows: "list[AlignmentRow]"
) -> None:
    """Tables, figure and summary of one comparison."""
    from model_diffs.diagnostics.mlp_nullspace import layer_rows

    table = run.table("mlp_nullspace_metrics", rows)
    run.table("layer_nullspace_summary", layer_rows(rows))
    draw(run, table)
    run.document("summary", summary(table))
    run.reads(*base.files, *changed.files)
    run.record(models={"a": base.identity(), "b": changed.identity()}, matrices=len(rows))


def main() -> None:
    """Measure what is not complete, the base read once for all comparisons."""
    options = parse_arguments()
    todo = results.pending(planned_runs(options), options.force)
    if not todo:
        return
    from contextlib import ExitStack

    from model_diffs.diagnostics import mlp_nullspace, subspaces
    from model_diffs.models.checkpoints import Checkpoint
    from model_diffs.models.devices import pick_device

    device, threshold = pick_device(options.device), options.rank_threshold
    base = Checkpoint.open(options.model_a)
    changed = [Checkpoint.open(planned.model_b) for planned in todo]
    with ExitStack() as stack:
        # Opened before the work: an unwritable place should not cost an hour first.
        open_runs = [stack.enter_context(results.open_run(planned)) for planned in todo]
        measured = subspaces.over_changes(
            base,
            changed,
            subspaces.mlp_matrices(base),
            lambda W_A: mlp_nullspace.prepare_space(W_A, threshold),
            lambda matrix, space, W_B, dW: mlp_nullspace.alignment_row(
                matrix, space, W_B, dW, threshold
            ),
            device,
        )
        for run, other, rows in zip(open_runs, changed, measured, strict=True):
            write(run, base, other, rows)
            run.record(device=str(device))


if __name__ == "__main__":
    arguments.run_script(main)
