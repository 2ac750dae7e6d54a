"""Step 17. How differently do the two models predict the next token?

KL(base || changed) of the next-token distributions in nats (Kullback & Leibler 1951), and whether
both rank the same token first (agreement): means over unmasked tokens, 95 % intervals over texts.

    uv run kl_divergence.py --model-a models/miniature-base --model-b models/miniature-filtered \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run kl_divergence.py --model-a org/base --model-b org/unlearned --max-samples 100

Writes <outroot>/<A>__to__<B>/kl_divergence/ with kl_divergence.csv, per_text.csv, tokens.csv (after
which tokens predictions changed most), contexts.html (the same) and kl_divergence.png.
"""

from dataclasses import dataclass
from typing import Any

from model_diffs.core.options import Comparison, Figures, Reading
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Measure, Step, Table, title_of

STEP = Step(
    number=17,
    folder="kl_divergence",
    question="How differently do the two models predict the next token?",
    memory="model_diffs.diagnostics.memory:PREDICTIONS",
    processes=True,
    version=2,  # logits of the tokens that count alone: other sums, other last digits
    needs=("forget", "retain"),
    tables=(Table("kl_divergence"), Table("per_text"), Table("tokens")),
    figures=(Figure("kl_divergence", "KL divergence by text", axis="function"),),
    measures=tuple(
        Measure(
            f"kl_{split}",
            axis="function",
            table="per_text",
            column="kl",
            where={"split": split},
            unit="nats",
            label=f"next-token KL, {split}",
            meaning=f"KL(base || changed) of the next token; mean over {split}-set tokens.",
            paired_by="text",
            unchanged=0.0,
            above=f"changes {split}-set predictions more than filtering does",
            below=f"changes {split}-set predictions less than filtering does",
            same=f"does not differ significantly from filtering in its {split}-set predictions",
        )
        for split in ("forget", "retain")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Reading, Figures):
    """KL divergence."""


def write(run: Run, tokens: Any, tokenizer: Any, seed: int) -> None:
    """Tables, page and figure of one comparison."""
    from model_diffs.core.figures import STYLES, Line, Panel, layer_figure, model_colour
    from model_diffs.stats.intervals import ratio_interval

    groups = tokens.groupby(["split", "text"])
    texts = groups[["kl", "agreement"]].mean().assign(tokens=groups.size()).reset_index()
    rows, lines, colour = [], [], model_colour(run.planned.model_b)
    for split, part in texts.groupby("split"):
        rows.append({"split": split, "texts": len(part), "tokens": int(part["tokens"].sum())})
        for name in ("kl", "agreement"):
            rows[-1] |= ratio_interval(part[name] * part.tokens, part.tokens, seed).cells(name)
        lines.append(Line(split, range(len(part)), sorted(part.kl), colour, STYLES[split]))
    run.table("per_text", texts)
    run.table("kl_divergence", rows)
    largest = tokens[tokens["context"] != ""].sort_values(["split", "kl"], ascending=[True, False])
    words = {n: [tokenizer.decode([token]) for token in largest[n]] for n in ("base", "changed")}
    largest = largest.assign(**words).drop(columns=["row", "agreement"])
    run.page("contexts", run.table("tokens", largest))
    panel = Panel("KL(base || changed) by text", "nats per token", lines, xlabel="texts, in order")
    run.figure("kl_divergence", layer_figure(title_of(run.planned), [panel]))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Compare every changed model with the base, which is read once; one model is in memory."""
    import pandas as pd

    from model_diffs.activations import passes
    from model_diffs.diagnostics import predictions
    from model_diffs.models import devices, loading

    names = [options.model_a, *(planned.model_b for planned in todo)]
    sample, tokenizer = passes.of_splits(options, names)
    left, bases = iter(todo), list[Any]()
    dtype = devices.pick_dtype(options.dtype, sample[0].device)

    def use(model: Any) -> None:
        if not bases:
            bases.append(predictions.read_base(model, sample))
            return
        changed, planned = predictions.Predictor(model), next(left)
        with open_run(planned) as run:
            every = (predictions.compared(bases[0], changed, tokenizer, one) for one in sample)
            write(run, pd.concat(every), tokenizer, options.seed)
            passes.describe(run, [planned.model_a, planned.model_b], sample, dtype)

    loading.one_by_one(lambda name: loading.load_for(options, name), names, use)


if __name__ == "__main__":
    run_step(__name__)
