"""Step 8. Can forget and retain texts be told apart inside the model, and did that change?

Each text is the mean of its hidden states. Per layer: distance between the centroids of the two
splits, spread between over spread within them, and how well a linear classifier (shrinkage LDA, out
of fold) orders unseen texts; for both models, and the change between them, with 95 % intervals over
documents. Uses the statistics of step 4's pass; makes them where they are missing.

    uv run activation_separation_analysis.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run activation_separation_analysis.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-samples 100

Writes <outroot>/<A>__to__<B>/activation_separation/ with separation_metrics.csv,
separation_changes.csv, separation_resamples.csv, activation_separation_analysis.png and
summary.json.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_diffs.core.naming import model_label
from model_diffs.core.options import Comparison, Figures, Pass
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Claims, Figure, Measure, Step, Table, names_of, title_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from model_diffs.stats.cross_validation import Design, Estimate

STEP = Step(
    number=8,
    folder="activation_separation",
    question="Does the model tell forget from retain texts more, or less?",
    needs=("forget", "retain"),
    tables=(
        Table("separation_metrics"),
        Table("separation_changes"),
        Table("separation_resamples"),
    ),
    figures=(
        Figure(
            "activation_separation_analysis", "Separation of forget and retain texts", "function"
        ),
    ),
    measures=(
        Measure(
            "separation_change",
            axis="function",
            table="separation_changes",
            column="cosine_distance_change",
            unit="change",
            label="separation, change",
            meaning="Change of the cosine distance between forget-set and retain-set centroids; "
            "mean over the outputs of all blocks.",
            layers="states",
            may_be_empty=True,
            undefined="a centroid is zero and has no direction",
            paired_by="resample",
            kept="separation_resamples",
            unchanged=0.0,
            above="separates forget and retain texts more than filtering does",
            below="separates forget and retain texts less than filtering does",
            same="does not differ significantly from the filtered model in the separation of "
            "forget and retain texts",
            against_base=Claims(
                above="moves forget and retain texts apart",
                below="moves forget and retain texts closer together",
                same="does not significantly change the separation of forget and retain texts",
                reference=0.0,
                shown="cosine distance {}",
            ),
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Pass, Figures):
    """Separation."""


def draw(run: Run, base: "pd.DataFrame", changed: "pd.DataFrame", change: "pd.DataFrame") -> None:
    """Both models over layers; below each metric, its change."""
    from model_diffs.core.figures import (
        BASE,
        STATES,
        Panel,
        column_line,
        layer_figure,
        model_colour,
    )

    (a, b), colour = names_of(run.planned), model_colour(run.planned.model_b)

    def pair(
        metric: str, title: str, ylabel: str, reference: float = 0.0, label: str = ""
    ) -> tuple[Panel, Panel]:
        lines = [column_line(base, metric, a, BASE), column_line(changed, metric, b, colour)]
        moved = [column_line(change, f"{metric}_change", "change", colour)]
        return (
            Panel(title, ylabel, lines, reference, label, xlabel=STATES),
            Panel(f"its change, {b} − {a}", f"change of {ylabel}", moved, 0.0, xlabel=STATES),
        )

    cosine = pair("cosine_distance", "Cosine distance of the centroids", "1 − cosine")
    title = "Linear classifier on unseen documents"
    auc = pair("auc", title, "out-of-fold AUC", 0.5, "chance")
    ratio = pair("variance_ratio", "Spread between over within the splits", "trace ratio")
    distance = pair("euclidean_distance", "Distance of the centroids", "Euclidean distance")
    panels = [*zip(cosine, auc, strict=True), *zip(ratio, distance, strict=True)]
    order = [panel for row in panels for panel in row]
    title = f"Separation of forget and retain texts: {title_of(run.planned)}"
    figure = layer_figure(title, order, legend="below")
    # A change of a thousandth should not fill a panel.
    axes = figure.axes[order.index(auc[1])]
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.05), max(high, 0.05))
    run.figure("activation_separation_analysis", figure)


def write(run: Run, a: "Estimate", b: "Estimate", plan: "Design", seed: int) -> None:
    """Tables, figure and summary of one comparison."""
    import pandas as pd

    from model_diffs.diagnostics import separation
    from model_diffs.stats import cross_validation

    base = separation.metric_table(model_label(run.planned.model_a), a)
    changed = separation.metric_table(model_label(run.planned.model_b), b)
    change = separation.change_table(a, b)
    run.table("separation_metrics", pd.concat([base, changed]))
    run.table("separation_changes", change)
    run.table("separation_resamples", separation.resampled_table(a, b))
    draw(run, base, changed, change)
    summary = {
        "documents": {"forget": int(plan.labels.sum()), "retain": int((~plan.labels).sum())},
        "folds": cross_validation.FOLDS,
        "resamples": len(plan.forget),
        "seed": seed,
        "metrics": separation.summary(base, changed, change),
    }
    run.document("summary", summary)


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Analyse the comparisons; the base is measured once for all of them."""
    from model_diffs.activations import store
    from model_diffs.data import texts
    from model_diffs.diagnostics import separation
    from model_diffs.stats import cross_validation

    splits = texts.read_splits(options.forget_text, options.retain_text, options.max_samples)
    cross_validation.check_splits(splits, cross_validation.FOLDS)
    found = store.of_comparisons(options, todo)

    def pooled(model: str) -> "list[NDArray[Any]]":
        return [found.models[split.name, model].read("pooled").pooled for split in splits]

    base_documents = pooled(options.model_a)
    forget, retain = (len(documents) for documents in base_documents)
    plan = cross_validation.design(forget, retain, cross_validation.FOLDS, options.seed)
    base = separation.measure(base_documents, plan, model_label(options.model_a))
    for planned in todo:
        with open_run(planned) as run:
            label = model_label(planned.model_b)
            changed = separation.measure(pooled(planned.model_b), plan, label)
            write(run, base, changed, plan, options.seed)
            store.describe(run, found)


if __name__ == "__main__":
    run_step(__name__)
