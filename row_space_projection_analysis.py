"""Step 11. Do forget inputs lie where the weight change reads, more than retain inputs do?

The inputs that each MLP matrix of the base sees are projected onto the leading right singular
vectors of its change dW, and the effect of dW on them is set against that of W. Effects leave out
positions whose whole prefix also begins a text of the other split: there both see the same input.
One pass over the base serves all layers and all comparisons.

    uv run row_space_projection_analysis.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run row_space_projection_analysis.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-samples 100

Writes <outroot>/<A>__to__<B>/row_space_projection/{projection_metrics.csv, per_text.csv,
row_space_projection.png, summary.json}.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_diffs.core.options import Comparison, Figures, Reading, option, positive
from model_diffs.core.results import PlannedRun, Run
from model_diffs.core.script import run_step
from model_diffs.core.step import Claims, Figure, Measure, Step, Table, title_of
from model_diffs.diagnostics.selectivity import forget_over_retain

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.activations.passes import SplitPass
    from model_diffs.diagnostics.row_space import Changes, Shared, Totals

STEP = Step(
    number=11,
    folder="row_space_projection",
    question="Is the change aimed at the inputs of forget texts?",
    memory="model_diffs.diagnostics.memory:ROW_SPACE",
    needs=("forget", "retain"),
    processes=True,
    version=3,
    tables=(Table("projection_metrics"), Table("per_text")),
    figures=(Figure("row_space_projection", "Inputs against ΔW", "precision"),),
    measures=tuple(
        Measure(
            key,
            axis="precision",
            table="projection_metrics",
            column=column,
            label=label,
            meaning=f"{meaning}, forget over retain texts; mean over the changed MLP matrices.",
            compute=forget_over_retain,
            computed=f"mean of `{column}` over the changed MLP matrices",
            logarithmic=True,
            above=f"{verb} forget inputs, relative to retain inputs, more than filtering does",
            below=f"{verb} forget inputs, relative to retain inputs, less than filtering does",
            same="does not differ significantly from the filtered model in how selectively it "
            f"{verb} forget inputs",
            against_base=Claims(
                above=f"{verb} forget inputs more than retain inputs",
                below=f"{verb} retain inputs more than forget inputs",
                same=f"{verb} forget and retain inputs without significant difference",
                reference=1.0,
                shown="forget over retain {}",
            ),
        )
        for key, column, label, meaning, verb in (
            (
                "row_space_selectivity",
                "selectivity_ratio",
                "row space, forget/retain",
                "Share of the inputs' energy in the row space of ΔW",
                "reads",
            ),
            (
                "effect_selectivity",
                "effect_selectivity",
                "effect, forget/retain",
                "Size of ΔW x relative to W x at positions whose prefix is in one split only",
                "acts on",
            ),
        )
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Reading, Figures):
    """Projection."""

    top_k: int = option(
        20, "right singular vectors of dW; fewer where its numerical rank is lower", check=positive
    )


def draw(run: Run, table: "pd.DataFrame") -> None:
    """Per type of matrix the projections on both splits; below, the effects of dW."""
    from model_diffs.core.figures import STYLES, Panel, column_line, layer_figure, model_colour
    from model_diffs.diagnostics.subspaces import MLP_COMPONENTS

    colour = model_colour(run.planned.model_b)
    keys = ["weight_type", "layer"]
    # Experts of a layer are averaged, their intervals too.
    numbers = table.drop(columns="name").set_index(keys).astype(float)
    means = numbers.groupby(keys, sort=False).mean().reset_index()
    kinds = [kind for kind in MLP_COMPONENTS if kind in set(means["weight_type"])]
    panels = []
    for quantity, what, ylabel in (
        ("proj_ratio", "inputs where ΔW reads", "mean ‖P x‖ / ‖x‖"),
        ("effect", "what ΔW does to them", "mean ‖ΔW x‖ / ‖W x‖"),
    ):
        for kind in kinds:
            rows = means[means["weight_type"] == kind]
            lines = [
                column_line(rows, f"{split}_{quantity}", f"{split} texts", colour, style)
                for split, style in STYLES.items()
            ]
            if quantity == "proj_ratio":
                lines.append(column_line(rows, "random_proj_ratio", "random input", "#999999", ":"))
            panels.append(Panel(f"{kind}: {what}", ylabel, lines, from_zero=True))
    title = f"Inputs of the base against the change's row space: {title_of(run.planned)}"
    run.figure("row_space_projection", layer_figure(title, panels, len(kinds), legend="below"))


def write(
    run: Run,
    changes: "Changes",
    passes: "list[SplitPass]",
    shared: "Shared",
    totals: "Totals",
    seed: int,
) -> None:
    """Tables, figure and summary of one comparison."""
    from model_diffs.diagnostics import projections

    changed = run.planned.model_b
    targets = [target for target in changes.targets if changed in target.reads]
    rows = [projections.metric_row(target, changed, totals, seed) for target in targets]
    table = run.table("projection_metrics", rows, projections.COLUMNS)
    names = [target.matrix.name for target in targets]
    run.table("per_text", projections.text_table(names, changed, totals, passes))
    if rows:
        draw(run, table)
    else:
        print(f"{run.planned.label}: no MLP matrix differs; there is nothing to draw")
    run.document("summary", projections.summary(table, changes, passes, shared))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure the comparisons, all in one pass over the base."""
    from model_diffs.activations import passes
    from model_diffs.diagnostics import row_space
    from model_diffs.diagnostics.weight_results import open_comparisons
    from model_diffs.models import devices, loading
    from model_diffs.models.anatomy import locate

    with open_comparisons(todo) as (base, changed, runs):
        sample, _ = passes.of_splits(options, [base.model])
        device = sample[0].device
        dtype = devices.pick_dtype(options.dtype, device)
        changes = row_space.read_changes(base, changed, options.top_k, device, dtype)
        anatomy = locate(loading.load_for(options, base.model))
        row_space.move_to_device(changes.targets, device)
        shared = row_space.shared_prefixes(sample)
        totals = row_space.watch(anatomy, changes.targets, sample, shared)
        for run, other in zip(runs, changed, strict=True):
            write(run, changes, sample, shared, totals, options.seed)
            passes.describe(run, [base.model, other.model], sample, dtype)


if __name__ == "__main__":
    run_step(__name__)
