"""Step 12. Did the intervention make the model rougher or smoother around its inputs?

Embeddings of a text are perturbed by a small part of their length, and the largest change of the
final hidden states (before the head) over the length of the perturbation is kept; beside it stand
the norm of the Jacobian (the sharp local constant), both at the logits and both of relative
changes, the loss's gradient and the variance of the logits. `--dtype auto` computes in fp32 on
every device: half precision rounds by as much as the perturbations are large.

    uv run local_lipschitzness_analysis.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run local_lipschitzness_analysis.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-length 128

Writes <outroot>/<A>__to__<B>/lipschitzness/{lipschitzness_summary.csv, per_text.csv,
lipschitzness_analysis.png, summary.json}.
"""

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_diffs.core.options import Comparison, Figures, Reading, natural, option, positive
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Claims, Figure, Measure, Step, Table, names_of, title_of

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.axes import Axes

    from model_diffs.activations.passes import SplitPass

MEASURED = (
    (
        "lipschitz",
        "lipschitz",
        "noise response",
        "response to noise",
        "Mean response of the final hidden states, before the head, to noise on the embeddings",
    ),
    (
        "lipschitz_logits",
        "lipschitz_logits_relative",
        "relative response of logits",
        "relative response of the logits to noise",
        "Mean relative change of the logits over the relative size of noise on the embeddings,",
    ),
    (
        "jacobian",
        "jacobian_norm_estimated",
        "Jacobian norm",
        "Jacobian norm",
        "Mean norm of the Jacobian of the final hidden states with respect to the embeddings",
    ),
)
"""Key, column, label, name in sentences and meaning of a measure."""
SEARCH = ("max_iters", "tol", "jacobian_samples")  # decide Jacobian norms

STEP = Step(
    number=12,
    folder="lipschitzness",
    question="Is the model rougher or smoother around its inputs?",
    memory="model_diffs.diagnostics.memory:SENSITIVITY",
    processes=True,
    needs=("forget", "retain"),
    version=5,
    tables=(Table("lipschitzness_summary"), Table("per_text")),
    figures=(Figure("lipschitzness_analysis", "Sensitivity by text kind", "stability"),),
    measures=tuple(
        Measure(
            f"{key}_{split}",
            axis="stability",
            table="per_text",
            column=column,
            where={"model": "{changed}", "data": split},
            over={"model": "{base}"},
            label=f"{label}, {split}",
            meaning=f"{meaning} on {split} texts, changed model over base.",
            weights=(),  # the texts alike
            paired_by="text",
            options=("epsilon", "num_perturbations", "seed", *(SEARCH if "jac" in key else ())),
            unchanged=1.0,
            logarithmic=True,
            above=f"has a higher {what} on {split} texts than the filtered model",
            below=f"has a lower {what} on {split} texts than the filtered model",
            same="does not differ significantly from the filtered model in the "
            f"{what} on {split} texts",
            against_base=Claims(
                above=f"increases the {what} on {split} texts",
                below=f"decreases the {what} on {split} texts",
                same=f"does not significantly change the {what} on {split} texts",
                reference=1.0,
                shown="{} times the base's",
            ),
        )
        for key, column, label, what, meaning in MEASURED
        for split in ("forget", "retain")
    ),
)

PANELS = {
    "lipschitz": ("Largest response found", "max ‖f(x+δ) − f(x)‖ / ‖δ‖"),
    "jacobian_norm": ("Largest response possible", "‖∂f/∂x‖₂"),
    "gradient_norm": ("Pull of the loss", "‖∂loss/∂x‖"),
    "output_variance": ("Spread of the logits", "variance over δ"),
}
"""Title and ylabel by metric."""
CHANGES = {
    "lipschitz": "found:\nin f",
    "lipschitz_relative": "found:\nin f, relative",
    "lipschitz_logits": "found:\nin logits",
    "lipschitz_logits_relative": "found: in\nlogits, relative",
    "jacobian_norm": "possible:\nin f",
    "jacobian_norm_relative": "possible:\nin f, relative",
    "jacobian_norm_logits": "possible:\nin logits",
    "jacobian_norm_logits_relative": "possible: in\nlogits, relative",
    "gradient_norm": "pull of\nthe loss",
    "output_variance": "spread of\nthe logits",
}
"""What the changes are of, by metric: responses found and possible, in f (before the head) or after
it, of absolute or relative changes; gradient and variance."""


def at_least_two(value: int) -> None:
    """A number of perturbations that has a variance."""
    if value < 2:
        raise ValueError("a variance needs at least 2")


def not_one(value: int) -> None:
    """A number of texts that has a spread, or 0 for all."""
    if value < 0 or value == 1:
        raise ValueError("0 takes all texts; others need at least 2 for a spread")


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Reading, Figures):
    """Perturbations."""

    epsilon: float = option(
        0.01, "length of a perturbation relative to each token's embedding", check=positive
    )
    num_perturbations: int = option(2, "random perturbations per text", check=at_least_two)
    lipschitz_samples: int = option(
        0,
        "texts per split, evenly spread over those of --max-samples; 0 = all of them",
        check=natural,
    )
    jacobian_samples: int | None = option(
        None,
        "texts per split whose Jacobian, gradient and loss are measured, drawn from those of "
        "--lipschitz-samples; default: a fifth of them, 12 to 64; 0 = all: narrower intervals",
        check=not_one,
    )
    tol: float = option(1e-2, "relative change that ends the search for a norm", check=positive)
    max_iters: int = option(
        100, "maximum number of iterations of each Jacobian norm", check=positive
    )


def pick_dtype(options: Options) -> "torch.dtype":
    """fp32 unless asked otherwise; warns where perturbations are as small as its rounding."""
    import torch

    from model_diffs.models import devices

    dtype = torch.float32 if options.dtype == "auto" else devices.DTYPES[options.dtype]
    if options.epsilon < 16 * torch.finfo(dtype).eps:
        print(
            f"warning: perturbations of {options.epsilon} are close to the rounding of "
            f"{options.dtype}; use --dtype fp32 or a larger --epsilon",
            file=sys.stderr,
        )
    return dtype


def measure(
    model: str, options: Options, sample: "list[SplitPass]", dtype: "torch.dtype"
) -> "pd.DataFrame":
    """per_text.csv of one model, which is in memory meanwhile."""
    import pandas as pd

    from model_diffs.activations.passes import Reader
    from model_diffs.diagnostics import lipschitz, sensitivity
    from model_diffs.models import loading

    found = vars(options) | {"derivatives": options.jacobian_samples}
    settings = sensitivity.Settings(**{name: found[name] for name in sensitivity.Settings._fields})
    trust, at = options.trust_remote_code, sample[0].device
    lipschitz.make_differentiable(loaded := loading.load_model(model, at, dtype, trust, held=True))
    subject = sensitivity.Subject.of(Reader(model, loaded), sample[0])
    texts = pd.concat([sensitivity.measure(subject, one, settings) for one in sample])
    unfinished = int((~texts["jacobian_converged"]).sum())
    if unfinished:
        says = f"did not converge to {options.tol} in {options.max_iters} iterations"
        print(f"warning: {model}: the Jacobian norm of {unfinished} texts {says}; raise "
              "--max-iters", file=sys.stderr)  # fmt: skip
    return texts


def draw_points(axes: "Axes", shift: float, intervals: "pd.DataFrame", **look: Any) -> None:
    """Means with their intervals: mean, low and high of the points 0, 1, … moved by `shift`."""
    mean, low, high = intervals.to_numpy(float).T
    x = [place + shift for place in range(len(mean))]
    axes.errorbar(x, mean, [mean - low, high - mean], fmt="o", capsize=3, **look)
    axes.grid(axis="x", visible=False)


def draw_changes(axes: "Axes", change: dict[str, Any], colour: str) -> None:
    """Each metric of B over that of A with its paired interval; forget filled, retain open."""
    import pandas as pd

    none = dict.fromkeys(("mean", "low", "high"), math.nan)
    for split, face, shift in (("forget", colour, -0.1), ("retain", "white", 0.1)):
        ratio = 1 + pd.DataFrame([change[split].get(n, {}).get("relative", none) for n in CHANGES])
        draw_points(axes, shift, ratio, color=colour, mfc=face, ms=7, label=f"{split} texts")
    axes.axhline(1, color="#999999", lw=0.9, zorder=0)
    axes.text(
        len(CHANGES) - 0.42, 1, "unchanged", ha="right", va="bottom", fontsize=9, color="#777"
    )
    low, high = axes.get_ylim()
    if high > 10 or low < 0.1:  # on a linear axis all small changes would lie on the line
        axes.set_yscale("log")
    axes.set_xticks(range(len(CHANGES)), [*CHANGES.values()], fontsize=9)
    axes.set_xlim(-0.6, len(CHANGES) - 0.4)
    axes.set(title="Changed model over base, paired over texts", ylabel="mean of B / mean of A")
    axes.legend(loc="best")


def draw(run: Run, table: "pd.DataFrame", change: dict[str, Any]) -> None:
    """Means of both models on both splits above, the relative change of each metric below."""
    from model_diffs.core.figures import BASE, WIDTH_INCHES, model_colour, plt

    colour = model_colour(run.planned.model_b)
    figure, axes = plt.subplot_mosaic(
        [list(PANELS), ["change"] * len(PANELS)],
        figsize=(WIDTH_INCHES, 7.6),
        layout="constrained",
        height_ratios=(1.0, 0.9),
    )
    looks = list(zip(names_of(run.planned), (BASE, colour), (-0.12, 0.12), strict=True))
    for metric, (title, ylabel) in PANELS.items():
        columns, cell = [f"avg_{metric}{end}" for end in ("", "_low", "_high")], axes[metric]
        models = (rows[columns] for _, rows in table.groupby("model", sort=False))
        for (name, look, shift), means in zip(looks, models, strict=False):
            draw_points(cell, shift, means, color=look, label=name, ms=6)
        cell.set(xticks=(0, 1), xticklabels=("forget\ntexts", "retain\ntexts"), xlim=(-0.6, 1.6))
        cell.set(title=title, ylabel=ylabel)
        cell.set_ylim(bottom=0)
    axes["lipschitz"].legend(loc="lower left", fontsize=9)
    draw_changes(axes["change"], change, colour)
    figure.suptitle(f"Sensitivity to the input: {title_of(run.planned)}", fontsize=13)
    run.figure("lipschitzness_analysis", figure)


def write(run: Run, base: "pd.DataFrame", changed: "pd.DataFrame", options: Options) -> None:
    """Tables, figure and summary of one comparison."""
    import pandas as pd

    from model_diffs.diagnostics import sensitivity

    texts = run.table("per_text", pd.concat([base, changed]))
    summary = sensitivity.summary_rows(texts, options.seed)
    change = sensitivity.changes(base, changed, options.seed)
    draw(run, run.table("lipschitzness_summary", summary, sensitivity.COLUMNS), change)
    run.document("summary", {"changes": change, "epsilon": options.epsilon})
    run.record(jacobian_not_converged=int((~texts["jacobian_converged"]).sum()))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure the comparisons; the base once for all of them."""
    from model_diffs.activations import passes
    from model_diffs.diagnostics import sensitivity
    from model_diffs.models.checkpoints import Checkpoint, check_configs
    from model_diffs.stats import subsample

    base, models = Checkpoint.open(options.model_a), [planned.model_b for planned in todo]
    for model in models:
        check_configs(base, Checkpoint.open(model))
    # Every model must read the same tokens.
    sample, _ = passes.of_splits(options, [base.model, *models])
    for one in sample:
        one.tokens = sensitivity.spread_sample(one.tokens, options.lipschitz_samples, options.seed)
    measured, dtype = {one.split.name: len(one.tokens.ids) for one in sample}, pick_dtype(options)
    derived = {name: subsample.asked(n, options.jacobian_samples) for name, n in measured.items()}
    of_base: pd.DataFrame | None = None
    for planned in todo:
        with open_run(planned) as run:
            if of_base is None:
                of_base = measure(base.model, options, sample, dtype)
            write(run, of_base, measure(planned.model_b, options, sample, dtype), options)
            passes.describe(run, [base.model, planned.model_b], sample, dtype)
            run.record(texts_measured=measured, texts_derivatives=derived)


if __name__ == "__main__":
    run_step(__name__)
