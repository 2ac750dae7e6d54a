"""Step 9. Did the intervention change the shape of what the model's states can express?

Per layer and split, the eigenvalues of the centred covariance of hidden states over tokens: how
many directions are in use, how evenly, and how far the spectrum moved from base to changed model,
on forget texts against retain texts. Uses the statistics of step 4's pass; makes them where they
are missing.

    uv run activation_covariance_analysis.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run activation_covariance_analysis.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-samples 100

Writes <outroot>/<A>__to__<B>/activation_covariance/ with covariance_metrics.csv, spectra.npz,
covariance_analysis.png and summary.json.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_diffs.core.naming import model_label
from model_diffs.core.options import Comparison, Figures, Pass
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Measure, Step, Table, names_of, title_of

if TYPE_CHECKING:
    import pandas as pd

STEP = Step(
    number=9,
    folder="activation_covariance",
    question="Did the shape of the cloud of hidden states change?",
    memory="model_diffs.activations.memory:COMPARISONS",
    processes=True,
    needs=("forget", "retain"),
    version=2,
    tables=(Table("covariance_metrics"),),
    figures=(Figure("covariance_analysis", "Spectra of hidden states", "function"),),
    measures=tuple(
        Measure(
            f"covariance_{split}",
            axis="function",
            table="covariance_metrics",
            column=f"{split}_wasserstein_normalised_residual",
            label=f"spectrum moved, {split}",
            meaning=f"Change in shape of the spectrum of {split}-set hidden states: Wasserstein "
            "distance of spectra scaled to mean 1; mean over the outputs of all blocks, the last "
            "before the final norm.",
            layers="states",
            may_be_empty=True,
            undefined="a spectrum is zero and has no shape",
            unchanged=0.0,
        )
        for split in ("forget", "retain")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Pass, Figures):
    """Covariance."""


def draw(run: Run, table: "pd.DataFrame") -> None:
    """Effective rank and entropy of both models; distance of the spectra and its selectivity."""
    from model_diffs.core import figures
    from model_diffs.core.figures import STYLES, Line, Panel, column_line

    (base, changed), colour = names_of(run.planned), figures.model_colour(run.planned.model_b)

    def both(column: str) -> list[Line]:
        return [
            column_line(table, f"{split}_{column}_{side}", f"{name}, {split}", shade, style)
            for side, name, shade in (("a", base, figures.BASE), ("b", changed, colour))
            for split, style in STYLES.items()
        ]

    moved = [
        column_line(table, f"{split}_wasserstein_normalised", f"{split} texts", colour, style)
        for split, style in STYLES.items()
    ]
    # Zero cannot be drawn on a log axis; the table has it.
    ratios = [
        column_line(table[table[column] > 0], column, label, colour, style)
        for column, label, style in (
            ("selectivity_ratio_normalised", "spectra scaled to mean 1", "-"),
            ("selectivity_ratio", "spectra as they are", ":"),
        )
    ]
    values = [value for one in ratios for value in one.y]
    wide = bool(values) and max(values) > 10 * min(values)  # less has no two ticks on a log axis
    distance = "Wasserstein-1 distance A to B"
    share = "forget / retain, log axis" if wide else "forget / retain"
    panels = [
        Panel("Directions for 99 % of the variance", "effective rank", both("eff_rank")),
        Panel("How evenly they are used", "entropy of the spectrum in nats", both("entropy")),
        Panel("How far the spectrum moved, scaled to mean 1", distance, moved, 0.0),
        Panel("Selectivity of that change", share, ratios, 1.0, "equal", log=wide),
    ]
    panels = [one._replace(xlabel=figures.STATES) for one in panels]
    figure = figures.layer_figure(f"Shape of hidden states: {title_of(run.planned)}", panels)
    run.figure("covariance_analysis", figure)


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Analyse the comparisons; the base's spectra are computed once for all of them."""
    import numpy as np

    from model_diffs.activations import store
    from model_diffs.activations.saved import pick
    from model_diffs.diagnostics import covariance

    found = store.of_comparisons(options, todo)

    def spectra(model: str, side: str) -> dict[str, Any]:
        return {
            f"{split}_{side}": covariance.spectra(
                found.models[split, model], f"{model_label(model)} on {split} texts"
            )
            for split in covariance.SPLITS
        }

    a = spectra(options.model_a, "a")
    for planned in todo:
        with open_run(planned) as run:
            every = a | spectra(planned.model_b, "b")
            hidden: dict[str, Any] = {n: pick(values, "hidden", 0) for n, values in every.items()}
            stream = {name: pick(values, "residual", 0) for name, values in every.items()}
            table, residual = covariance.metric_table(hidden), covariance.metric_table(stream)
            run.table("covariance_metrics", covariance.add_residual(table, residual))
            np.savez(run.path / "spectra.npz", **hidden)
            draw(run, table.astype(float))
            run.document("summary", covariance.summary(residual))
            store.describe(run, found)


if __name__ == "__main__":
    run_step(__name__)
