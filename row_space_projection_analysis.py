"""Step 11. Do forget inputs lie where the weight change reads, more than retain inputs do?

The inputs that each MLP matrix of the base sees are projected onto the leading right singular
vectors of its change dW, and the effect of dW on them is set against that of W. One pass over the
base serves all layers and all comparisons.

    uv run row_space_projection_analysis.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run row_space_projection_analysis.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-samples 100

Writes <outroot>/<A>__to__<B>/row_space_projection/{projection_metrics.csv, per_text.csv,
row_space_projection.png, summary.json}.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core.options import Comparison, Compute, Figures, Texts, option, positive
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Claims, Figure, Measure, Step, Table, title_of
from model_diffs.diagnostics.selectivity import forget_over_retain

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.activations.passes import SplitPass
    from model_diffs.diagnostics.projections import Totals
    from model_diffs.diagnostics.row_space import Change
    from model_diffs.models.checkpoints import Checkpoint

STEP = Step(
    number=11,
    folder="row_space_projection",
    question="Is the change aimed at the inputs of forget texts?",
    needs=("forget", "retain"),
    processes=True,
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
                "Size of ΔW x relative to W x",
                "acts on",
            ),
        )
    ),
)
SUMMARISED = (
    *("forget_proj_ratio", "retain_proj_ratio", "random_proj_ratio", "selectivity_ratio"),
    *("forget_effect", "retain_effect", "effect_selectivity"),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Texts, Compute, Figures):
    """Projection."""

    top_k: int = option(
        20, "right singular vectors of dW; fewer where its numerical rank is lower", check=positive
    )


class Measured(NamedTuple):
    """What the pass over the base gave."""

    change: "Change"
    passes: "list[SplitPass]"
    totals: "Mapping[str, Totals]"
    dtype: str


def measure(options: Options, base: "Checkpoint", changed: "list[Checkpoint]") -> Measured:
    """Decompose all changes and run the base over both splits once."""
    from model_diffs.activations import passes
    from model_diffs.data.texts import read_splits
    from model_diffs.diagnostics import row_space
    from model_diffs.models import devices, loading

    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    tokenizer = loading.load_tokenizer(base.model, options.trust_remote_code)
    todo = []
    for split in splits:
        tokens = passes.tokenise(
            tokenizer, split.texts, options.max_length, options.keep_bos, options.skip_first
        )
        pad = tokenizer.pad_token_id
        todo.append(passes.SplitPass(split, tokens, options.batch_size, pad, device))
    change = row_space.read_changes(base, changed, options.top_k, device, dtype)
    reader = passes.Reader(
        base.model, loading.load_model(base.model, device, dtype, options.trust_remote_code)
    )
    row_space.settle(change.targets, device)
    totals = row_space.watch(reader.anatomy, change.targets, todo)
    return Measured(change, todo, totals, devices.dtype_name(dtype))


def summary(table: "pd.DataFrame", change: "Change", model_b: str) -> dict[str, Any]:
    """Counts, and means over the changed matrices, in all and by type."""

    def means(rows: "pd.DataFrame") -> dict[str, Any]:
        found = rows[list(SUMMARISED)].astype(float).mean().dropna()
        return {"matrices": len(rows), **{str(k): float(v) for k, v in found.items()}}

    kinds = [str(kind) for kind in table["weight_type"].unique()]
    return {
        "matrices_changed": len(table),
        "matrices_unchanged": change.unchanged[model_b],
        "expert_output_matrices_left_out": change.expert_outputs_left_out,
        "means_over_changed_matrices": means(table) if len(table) else {},
        "by_weight_type": {kind: means(table[table["weight_type"] == kind]) for kind in kinds},
    }


def draw(run: Run, table: "pd.DataFrame") -> None:
    """Per type of matrix the projection on both splits; below, the effect of dW beside W's."""
    from model_diffs.core.figures import (
        STYLES,
        Line,
        Panel,
        column_line,
        layer_figure,
        model_colour,
    )
    from model_diffs.diagnostics.subspaces import MLP_COMPONENTS

    colour = model_colour(run.planned.model_b)
    keys = ["weight_type", "layer"]
    # Experts of a layer are averaged, their intervals too.
    numbers = table.drop(columns="name").set_index(keys).astype(float)
    means = numbers.groupby(keys, sort=False).mean().reset_index()

    def lines(rows: "pd.DataFrame", quantity: str) -> list[Line]:
        found = [
            column_line(rows, f"{split}_{quantity}", f"{split} texts", colour, style)
            for split, style in STYLES.items()
        ]
        return [line for line in found if line.x]

    projections, effects = [], []
    for kind in MLP_COMPONENTS:
        rows = means[means["weight_type"] == kind]
        if rows.empty:
            continue
        random = column_line(rows, "random_proj_ratio", "random input", "#999999", ":")
        inside = [*lines(rows, "proj_ratio"), random]
        title = f"{kind}: inputs where ΔW reads"
        projections.append(Panel(title, "mean ‖P x‖ / ‖x‖", inside, from_zero=True))
        effect = lines(rows, "effect")
        effects.append(
            Panel(f"{kind}: what ΔW does to them", "mean ‖ΔW x‖ / ‖W x‖", effect, from_zero=True)
        )
    title = f"Inputs of the base against the change's row space: {title_of(run.planned)}"
    figure = layer_figure(title, [*projections, *effects], len(projections), legend="below")
    run.figure("row_space_projection", figure)


def write(
    run: Run,
    base: "Checkpoint",
    changed: "Checkpoint",
    found: Measured,
    options: Options,
) -> None:
    """Table, figure and summary of one comparison."""
    from model_diffs.diagnostics.projections import Row, TextRow, rows_of, text_rows

    model_b = changed.model
    rows = rows_of(
        found.change.targets, model_b, found.totals["forget"], found.totals["retain"], options.seed
    )
    table = run.table("projection_metrics", rows, columns=Row._fields)
    documents = {one.split.name: one.tokens.documents for one in found.passes}
    texts = text_rows(found.change.targets, model_b, found.totals, documents)
    run.table("per_text", texts, columns=TextRow._fields)
    if rows:
        draw(run, table)
    else:
        print(f"{run.planned.label}: no MLP matrix differs, there is nothing to draw")
    run.document("summary", summary(table, found.change, model_b))
    run.reads(*base.files, *changed.files, *(one.split.path for one in found.passes))
    run.record(
        models={"a": base.identity(), "b": changed.identity()},
        texts={one.split.name: one.split.identity() for one in found.passes},
        tokens={one.split.name: int(one.tokens.counts.sum()) for one in found.passes},
        left_out={one.split.name: one.tokens.left_out for one in found.passes},
        device=str(found.passes[0].device),
        dtype=found.dtype,
    )


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure the comparisons, all in one pass over the base."""
    from model_diffs.models.checkpoints import Checkpoint

    base = Checkpoint.open(options.model_a)
    changed = [Checkpoint.open(planned.model_b) for planned in todo]
    with ExitStack() as stack:
        # Opened before the work: an unwritable folder is reported before an hour of computation.
        open_runs = [stack.enter_context(open_run(planned)) for planned in todo]
        found = measure(options, base, changed)
        for run, other in zip(open_runs, changed, strict=True):
            write(run, base, other, found, options)


if __name__ == "__main__":
    run_step(__name__)
