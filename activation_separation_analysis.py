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

STEP = Step(
    number=8,
    folder="activation_separation",
    question="Does the model tell forget from retain texts more, or less?",
    memory="model_diffs.activations.memory:COMPARISONS",
    processes=True,
    needs=("forget", "retain"),
    version=2,
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
            column="cosine_distance_change_residual",
            unit="change",
            label="separation, change",
            meaning="Change of the cosine distance between forget-set and retain-set centroids; "
            "mean over the outputs of all blocks, the last before the final norm.",
            layers="states",
            may_be_empty=True,
            undefined="a centroid is zero and has no direction",
            paired_by="resample",
            kept="separation_resamples",
            kept_column="cosine_distance_change",
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

PANELS = (
    ("cosine_distance", "Cosine distance of the centroids", "1 − cosine", 0.0, ""),
    ("auc", "Linear classifier on unseen documents", "out-of-fold AUC", 0.5, "chance"),
    ("variance_ratio", "Spread between over within the splits", "trace ratio", 0.0, ""),
    ("euclidean_distance", "Distance of the centroids", "Euclidean distance", 0.0, ""),
)
"""Metric, title, ylabel, and the value of no separation with its name."""


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Pass, Figures):
    """Separation."""


def draw(run: Run, base: "pd.DataFrame", changed: "pd.DataFrame", change: "pd.DataFrame") -> None:
    """Both models over layers; below each metric, its change."""
    from model_diffs.core import figures
    from model_diffs.core.figures import STATES, Panel, column_line

    (a, b), colour = names_of(run.planned), figures.model_colour(run.planned.model_b)
    levels, changes = [], []
    for metric, title, ylabel, reference, label in PANELS:
        lines = [
            column_line(base, metric, a, figures.BASE),
            column_line(changed, metric, b, colour),
        ]
        levels.append(Panel(title, ylabel, lines, reference, label, xlabel=STATES))
        title, ylabel = f"its change, {b} − {a}", f"change of {ylabel}"
        moved = [column_line(change, f"{metric}_change", "change", colour)]
        changes.append(Panel(title, ylabel, moved, 0.0, xlabel=STATES))
    panels = levels[:2] + changes[:2] + levels[2:] + changes[2:]
    title = f"Separation of forget and retain texts: {title_of(run.planned)}"
    figure = figures.layer_figure(title, panels, legend="below")
    # A change of a thousandth should not fill a panel.
    axes = figure.axes[panels.index(changes[1])]
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.05), max(high, 0.05))
    run.figure("activation_separation_analysis", figure)


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Analyse the comparisons; the base is measured once for all of them."""
    import pandas as pd

    from model_diffs.activations import store
    from model_diffs.data import texts
    from model_diffs.diagnostics import separation
    from model_diffs.stats import cross_validation

    splits = texts.read_splits(options.forget_text, options.retain_text, options.max_samples)
    cross_validation.check_splits(splits, cross_validation.FOLDS)
    found = store.of_comparisons(options, todo)

    def pooled(model: str) -> "list[NDArray[Any]]":
        return [found.models[split.name, model].read("pooled", "every") for split in splits]

    label, of_base = model_label(options.model_a), pooled(options.model_a)
    documents = {s.name: len(states) for s, states in zip(splits, of_base, strict=True)}
    forget, retain = documents.values()
    plan = cross_validation.design(forget, retain, cross_validation.FOLDS, options.seed)
    a = separation.measure(of_base, plan, label)
    a, a_residual = (separation.of_states(a, which) for which in ("hidden", "residual"))
    base = separation.metric_table(label, a)
    for planned in todo:
        with open_run(planned) as run:
            label = model_label(planned.model_b)
            b = separation.measure(pooled(planned.model_b), plan, label)
            b, b_residual = (separation.of_states(b, which) for which in ("hidden", "residual"))
            changed, change = separation.metric_table(label, b), separation.change_table(a, b)
            residual = separation.change_table(a_residual, b_residual)
            run.table("separation_metrics", pd.concat([base, changed]))
            run.table("separation_changes", separation.add_residual(change, residual))
            run.table("separation_resamples", separation.resampled_table(a_residual, b_residual))
            draw(run, base, changed, change)
            summary = {
                "documents": documents,
                "folds": cross_validation.FOLDS,
                "resamples": len(plan.forget),
                "seed": options.seed,
                "metrics": separation.summary(
                    separation.metric_table(label, a_residual),
                    separation.metric_table(label, b_residual),
                    residual,
                ),
            }
            run.document("summary", summary)
            store.describe(run, found)


if __name__ == "__main__":
    run_step(__name__)
