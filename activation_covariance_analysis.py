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

    from model_diffs.activations.store import Statistics

STEP = Step(
    number=9,
    folder="activation_covariance",
    question="Did the shape of the cloud of hidden states change?",
    needs=("forget", "retain"),
    tables=(Table("covariance_metrics"),),
    figures=(Figure("covariance_analysis", "Spectra of hidden states", "function"),),
    measures=tuple(
        Measure(
            f"covariance_{split}",
            axis="function",
            table="covariance_metrics",
            column=f"{split}_wasserstein_normalised",
            label=f"spectrum moved, {split}",
            meaning=f"Change in shape of the spectrum of {split}-set hidden states: Wasserstein "
            "distance of spectra scaled to mean 1; mean over the outputs of all blocks.",
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


def spectra_of(found: "Statistics", model: str) -> dict[str, Any]:
    """Spectra `[S, d]` of one model, by split."""
    from model_diffs.diagnostics.covariance import SPLITS, spectra

    label = model_label(model)
    return {s: spectra(found.models[s, model], f"{label} on {s} texts") for s in SPLITS}


def draw(run: Run, table: "pd.DataFrame", planned: PlannedRun) -> None:
    """Effective rank and entropy of both models; distance of the spectra and its selectivity."""
    from model_diffs.core.figures import (
        BASE,
        STYLES,
        Panel,
        column_line,
        layer_figure,
        model_colour,
    )

    (base, changed), colour = names_of(planned), model_colour(planned.model_b)
    xlabel = "hidden state (0 = embedding output)"

    def both(heading: str, ylabel: str, column: str) -> Panel:
        lines = [
            column_line(table, f"{split}_{column}_{side}", f"{name}, {split}", shade, style)
            for side, name, shade in (("a", base, BASE), ("b", changed, colour))
            for split, style in STYLES.items()
        ]
        drawn = [line for line in lines if line.x]
        return Panel(heading, ylabel, drawn, xlabel=xlabel)

    moved = [
        column_line(table, f"{split}_wasserstein_normalised", f"{split} texts", colour, style)
        for split, style in STYLES.items()
    ]
    # Zero has no place on a log axis; the table has it.
    ratios = [
        column_line(table[table[column] > 0], column, label, colour, style)
        for column, label, style in (
            ("selectivity_ratio_normalised", "spectra scaled to mean 1", "-"),
            ("selectivity_ratio", "spectra as they are", ":"),
        )
    ]
    values = [value for line in ratios for value in line.y]
    wide = bool(values) and max(values) > 10 * min(values)  # less has no two ticks on a log axis
    panels = [
        both("Directions for 99 % of the variance", "effective rank", "eff_rank"),
        both("How evenly they are used", "entropy of the spectrum in nats", "entropy"),
        Panel(
            "How far the spectrum moved, scaled to mean 1",
            "Wasserstein-1 distance A to B",
            [line for line in moved if line.x],
            0.0,
            xlabel=xlabel,
        ),
        Panel(
            "Selectivity of that change",
            "forget / retain, log axis" if wide else "forget / retain",
            [line for line in ratios if line.x],
            1.0,
            "equal",
            log=wide,
            xlabel=xlabel,
        ),
    ]
    title = f"Shape of hidden states: {title_of(planned)}"
    run.figure("covariance_analysis", layer_figure(title, panels))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Analyse the comparisons; the base's spectra are computed once for all of them."""
    import numpy as np

    from model_diffs.activations import store
    from model_diffs.diagnostics import covariance

    models = dict.fromkeys(model for p in todo for model in (p.model_a, p.model_b))
    found = store.statistics(options, models)
    for planned in todo:
        store.check_same_tokens(found, planned.model_a, planned.model_b)
    a = spectra_of(found, options.model_a)
    for planned in todo:
        with open_run(planned) as run:
            b = spectra_of(found, planned.model_b)
            rows = covariance.rows(a, b)
            table = run.table("covariance_metrics", rows, covariance.Row._fields)
            named = {f"{split}_{side}": s[split] for side, s in (("a", a), ("b", b)) for split in s}
            np.savez(run.path / "spectra.npz", **named)
            draw(run, table.astype(float), planned)
            run.document("summary", covariance.summary(rows))
            store.describe(run, found)


if __name__ == "__main__":
    run_step(__name__)
