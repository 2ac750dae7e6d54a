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
from typing import TYPE_CHECKING, NamedTuple

from model_diffs.core import naming
from model_diffs.core.options import (
    Comparison,
    Compute,
    Figures,
    Texts,
    natural,
    option,
    positive,
)
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Claims, Figure, Measure, Step, Table, names_of, title_of

if TYPE_CHECKING:
    import torch

    from model_diffs.activations.passes import Tokens
    from model_diffs.data.texts import Split
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


def at_least_two(value: int) -> None:
    """A number of perturbations that has a variance."""
    if value < 2:
        raise ValueError("a variance needs at least 2")


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Texts, Compute, Figures):
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


class Sample(NamedTuple):
    """The texts that are measured, and on what."""

    splits: "list[Split]"
    tokens: "list[Tokens]"
    """Of each split."""
    pad_id: int
    device: "torch.device"
    dtype: "torch.dtype"


def take_sample(options: Options, models_b: list[str]) -> Sample:
    """Read and tokenise both splits, evenly spread; every model must read the same tokens."""
    import torch

    from model_diffs.activations import passes
    from model_diffs.data.texts import read_splits
    from model_diffs.diagnostics.sensitivity import spread_sample
    from model_diffs.models import devices, loading

    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    tokenizer = loading.load_tokenizer(options.model_a, options.trust_remote_code)
    for model in models_b:
        other = loading.load_tokenizer(model, options.trust_remote_code)
        loading.check_same_tokenizer(options.model_a, tokenizer, model, other)
    tokens = [
        spread_sample(
            passes.tokenise(
                tokenizer, split.texts, options.max_length, options.keep_bos, options.skip_first
            ),
            options.lipschitz_samples,
            options.seed,
        )
        for split in splits
    ]
    device = devices.pick_device(options.device)
    dtype = torch.float32 if options.dtype == "auto" else devices.DTYPES[options.dtype]
    if options.epsilon < 16 * torch.finfo(dtype).eps:
        print(
            f"warning: perturbations of {options.epsilon} are close to the rounding of "
            f"{options.dtype}; use --dtype fp32 or a larger --epsilon",
            file=sys.stderr,
        )
    return Sample(splits, tokens, tokenizer.pad_token_id, device, dtype)


def measure(model: str, options: Options, sample: Sample) -> "list[TextRow]":
    """All rows of one model; it is in memory for as long as that takes."""
    from model_diffs.diagnostics import sensitivity

    settings = sensitivity.Settings(
        options.epsilon,
        options.num_perturbations,
        options.tol,
        options.max_iters,
        options.batch_size,
        options.seed,
    )
    reader = sensitivity.load(model, options, sample.device, sample.dtype)
    label = naming.model_label(model)
    rows = []
    for split, tokens in zip(sample.splits, sample.tokens, strict=True):
        rows += sensitivity.measure(reader, label, split.name, tokens, sample.pad_id, settings)
    unfinished = sum(not row.jacobian_converged for row in rows)
    if unfinished:
        print(
            f"warning: {label}: the Jacobian norm of {unfinished} texts had not settled to "
            f"{options.tol} after {options.max_iters} products; raise --max-iters",
            file=sys.stderr,
        )
    return rows


def write(
    run: Run,
    rows_a: "list[TextRow]",
    rows_b: "list[TextRow]",
    sample: Sample,
    options: Options,
) -> None:
    """Tables, figure and summary of one comparison."""
    import pandas as pd

    from model_diffs.core.figures import model_colour
    from model_diffs.diagnostics import sensitivity, sensitivity_figures
    from model_diffs.models import devices
    from model_diffs.models.checkpoints import Checkpoint

    run.table("per_text", [*rows_a, *rows_b])
    base, changed = (pd.DataFrame(rows) for rows in (rows_a, rows_b))
    texts = pd.concat([base, changed], ignore_index=True)
    table = run.table("lipschitzness_summary", sensitivity.summary_rows(texts, options.seed))
    change = sensitivity.changes(base, changed, options.seed)
    names, title = names_of(run.planned), title_of(run.planned)
    colour = model_colour(run.planned.model_b)
    figure = sensitivity_figures.sensitivity_figure(table, change, names, colour, title)
    run.figure("lipschitzness_analysis", figure)
    run.document("summary", {"changes": change, "epsilon": options.epsilon})
    checkpoints = [Checkpoint.open(m) for m in (run.planned.model_a, run.planned.model_b)]
    for checkpoint in checkpoints:
        run.reads(*checkpoint.files)
    run.reads(*(split.path for split in sample.splits))
    named = list(zip(sample.splits, sample.tokens, strict=True))
    run.record(
        models={c.model: c.identity() for c in checkpoints},
        texts={split.name: split.identity() for split, _ in named},
        texts_measured={split.name: len(tokens.ids) for split, tokens in named},
        tokens={split.name: int(tokens.counts.sum()) for split, tokens in named},
        left_out={split.name: tokens.left_out for split, tokens in named},
        jacobian_not_converged=int((~texts["jacobian_converged"]).sum()),
        device=str(sample.device),
        dtype=devices.dtype_name(sample.dtype),
    )


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure the comparisons; the base once for all of them."""
    from model_diffs.models.checkpoints import Checkpoint, check_configs

    base = Checkpoint.open(options.model_a)
    for planned in todo:
        check_configs(base, Checkpoint.open(planned.model_b))
    sample = take_sample(options, [planned.model_b for planned in todo])
    rows_a: list[TextRow] | None = None
    for planned in todo:
        with open_run(planned) as run:
            if rows_a is None:
                rows_a = measure(options.model_a, options, sample)
            write(run, rows_a, measure(planned.model_b, options, sample), sample, options)


if __name__ == "__main__":
    run_step(__name__)
