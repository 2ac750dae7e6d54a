"""Step 12. Did the intervention make the model rougher or smoother around its inputs?

Embeddings of a text are perturbed by a small part of their length, and the largest change of the
final hidden states relative to the perturbation is kept; beside it stand the norm of the Jacobian
(the sharp local constant), the loss's gradient and the variance of the logits. `--dtype auto`
computes in fp32 on every device: half precision rounds by as much as the perturbations are large.

    uv run local_lipschitzness_analysis.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__rmu \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run local_lipschitzness_analysis.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-length 128 \\
        --lipschitz-samples 32

Writes <outroot>/<A>__to__<B>/lipschitzness/{lipschitzness_summary.csv, per_text.csv,
lipschitzness_analysis.png, summary.json}.
"""

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
    from model_diffs.diagnostics.sensitivity import TextRow

STEP = Step(
    number=12,
    folder="lipschitzness",
    question="Is the model rougher or smoother around its inputs?",
    needs=("forget", "retain"),
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
            weights=(),
            paired_by="text",
            options=("epsilon", "num_perturbations", "max_iters", "tol", "seed"),
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
        for key, column, label, what, meaning in (
            (
                "lipschitz",
                "lipschitz",
                "noise response",
                "response to noise",
                "Mean response to random noise on the embeddings",
            ),
            (
                "jacobian",
                "jacobian_norm",
                "Jacobian norm",
                "Jacobian norm",
                "Mean norm of the Jacobian with respect to the embeddings",
            ),
        )
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


def at_least_two(value: int) -> None:
    """A number of perturbations that has a variance."""
    if value < 2:
        raise ValueError("a variance needs at least 2")


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Reading, Figures):
    """Perturbations."""

    epsilon: float = option(
        0.01, "length of a perturbation relative to each token's embedding", check=positive
    )
    num_perturbations: int = option(10, "random perturbations per text", check=at_least_two)
    lipschitz_samples: int = option(
        64, "texts per split, evenly spread over the sample; 0 = all of it", check=natural
    )
    tol: float = option(1e-3, "relative error of the Jacobian norm", check=positive)
    max_iters: int = option(100, "maximum number of products with JᵀJ", check=positive)


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


def take_sample(options: Options, models: list[str]) -> "list[SplitPass]":
    """Evenly spread texts of both splits; every model must read the same tokens."""
    from model_diffs.activations.passes import SplitPass
    from model_diffs.data.texts import read_splits
    from model_diffs.diagnostics.sensitivity import spread_sample
    from model_diffs.models import devices, loading

    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    tokenizer = loading.common_tokenizer(models, options.trust_remote_code)
    device = devices.pick_device(options.device)
    sample = [SplitPass.of(split, tokenizer, options, device) for split in splits]
    for one in sample:
        one.tokens = spread_sample(one.tokens, options.lipschitz_samples, options.seed)
    return sample


def measure(
    model: str, options: Options, sample: "list[SplitPass]", dtype: "torch.dtype"
) -> "list[TextRow]":
    """All rows of one model, which is in memory meanwhile."""
    from model_diffs.activations.passes import Reader
    from model_diffs.diagnostics import lipschitz, sensitivity
    from model_diffs.models import loading

    fields = sensitivity.Settings._fields
    settings = sensitivity.Settings(**{name: getattr(options, name) for name in fields})
    loaded = loading.load_model(model, sample[0].device, dtype, options.trust_remote_code)
    lipschitz.make_differentiable(loaded)
    reader = Reader(model, loaded)
    rows = [row for one in sample for row in sensitivity.measure(reader, one, settings)]
    unfinished = sum(not row.jacobian_converged for row in rows)
    if unfinished:
        print(
            f"warning: {model}: the Jacobian norm of {unfinished} texts did not converge to "
            f"{options.tol} in {options.max_iters} iterations; raise --max-iters",
            file=sys.stderr,
        )
    return rows


def draw_points(axes: "Axes", x: list[float], intervals: Any, **look: Any) -> None:
    """Means with their intervals: (mean, low, high) for each x."""
    import numpy as np

    mean, low, high = np.reshape([*intervals], (-1, 3)).T.astype(float)
    axes.errorbar(x, mean, [mean - low, high - mean], fmt="o", capsize=3, **look)
    axes.grid(axis="x", visible=False)


def draw_levels(axes: "Axes", table: "pd.DataFrame", metric: str, looks: list[Any]) -> None:
    """One metric: mean over texts and interval per split, for each model's (name, colour)."""
    columns = [f"avg_{metric}{end}" for end in ("", "_low", "_high")]
    parts = (rows for _, rows in table.groupby("model", sort=False))
    for (name, colour), shift, rows in zip(looks, (-0.12, 0.12), parts, strict=False):
        x = [place + shift for place in range(len(rows))]
        draw_points(axes, x, rows[columns].to_numpy(), color=colour, label=name, ms=6)
    splits = list(table["data"].unique())
    axes.set_xticks(range(len(splits)), [f"{split}\ntexts" for split in splits])
    axes.set_xlim(-0.6, len(splits) - 0.4)
    axes.set_ylim(bottom=0)


def draw_changes(axes: "Axes", change: dict[str, Any], colour: str) -> None:
    """Each metric of B over that of A with its paired interval; forget filled, retain open."""
    for split, face, shift in (("forget", colour, -0.1), ("retain", "white", 0.1)):
        relative = [change[split].get(metric, {}).get("relative") for metric in PANELS]
        x = [place + shift for place, one in enumerate(relative) if one]
        found = [[1 + one[end] for end in ("mean", "low", "high")] for one in relative if one]
        look: dict[str, Any] = {"color": colour, "mfc": face, "ms": 7, "label": f"{split} texts"}
        draw_points(axes, x, found, **look)
    axes.axhline(1, color="#999999", lw=0.9, zorder=0)
    axes.text(len(PANELS) - 0.42, 1, "unchanged", ha="right", va="bottom", fontsize=9, color="#777")
    low, high = axes.get_ylim()
    if high > 10 or low < 0.1:  # on a linear axis all small changes would lie on the line
        axes.set_yscale("log")
    axes.set_xticks(range(len(PANELS)), [title for title, _ in PANELS.values()])
    axes.set_xlim(-0.6, len(PANELS) - 0.4)
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
    looks = list(zip(names_of(run.planned), (BASE, colour), strict=True))
    for metric, (title, ylabel) in PANELS.items():
        draw_levels(axes[metric], table, metric, looks)
        axes[metric].set(title=title, ylabel=ylabel)
    axes["lipschitz"].legend(loc="lower left", fontsize=9)
    draw_changes(axes["change"], change, colour)
    figure.suptitle(f"Sensitivity to the input: {title_of(run.planned)}", fontsize=13)
    run.figure("lipschitzness_analysis", figure)


def write(
    run: Run, rows: "list[list[TextRow]]", sample: "list[SplitPass]", dtype: "torch.dtype"
) -> None:
    """Tables, figure and summary of one comparison; `rows` of base and changed model."""
    import pandas as pd

    from model_diffs.activations import passes
    from model_diffs.diagnostics import sensitivity

    seed, epsilon = (run.planned.arguments[name] for name in ("seed", "epsilon"))
    base, changed = map(pd.DataFrame, rows)
    texts = run.table("per_text", pd.concat([base, changed], ignore_index=True))
    summary = sensitivity.summary_rows(texts, seed)
    change = sensitivity.changes(base, changed, seed)
    draw(run, run.table("lipschitzness_summary", summary, sensitivity.COLUMNS), change)
    run.document("summary", {"changes": change, "epsilon": epsilon})
    passes.describe(run, [run.planned.model_a, run.planned.model_b], sample, dtype)
    run.record(
        texts_measured={one.split.name: len(one.tokens.ids) for one in sample},
        jacobian_not_converged=int((~texts["jacobian_converged"]).sum()),
    )


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure the comparisons; the base once for all of them."""
    from model_diffs.models.checkpoints import Checkpoint, check_configs

    base, models = Checkpoint.open(options.model_a), [planned.model_b for planned in todo]
    for model in models:
        check_configs(base, Checkpoint.open(model))
    sample, dtype = take_sample(options, [options.model_a, *models]), pick_dtype(options)
    of_base: list[TextRow] = []
    for planned in todo:
        with open_run(planned) as run:
            of_base = of_base or measure(options.model_a, options, sample, dtype)
            changed = measure(planned.model_b, options, sample, dtype)
            write(run, [of_base, changed], sample, dtype)


if __name__ == "__main__":
    run_step(__name__)
