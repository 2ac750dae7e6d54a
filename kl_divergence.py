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

from model_diffs.core.errors import BadInput
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


def compared(models: list[Any], tokenizer: Any, one: Any) -> Any:
    """A data frame, a row per unmasked token; `context` only where the 20 largest values are.

    Processes share the batches and all get all rows.
    """
    import pandas as pd
    import torch

    from model_diffs.models.devices import gather_over_processes

    found = []
    for at in one.batches("KL divergence"):
        with torch.inference_mode():
            logits = (model(**at.batch._asdict(), use_cache=False).logits for model in models)
            p, q = (x[at.counted].float().log_softmax(-1) for x in logits)
        row = torch.tensor(at.rows)[at.places[:, 0].cpu()]
        columns = (row, at.places[:, 1], (p.exp() * (p - q)).sum(-1), p.argmax(-1), q.argmax(-1))
        names = ("row", "position", "kl", "base", "changed")
        found.append(pd.DataFrame({n: x.tolist() for n, x in zip(names, columns, strict=True)}))
    every = gather_over_processes(found)
    table = pd.concat(every, ignore_index=True).assign(split=one.split.name, context="")
    if table["kl"].isna().any():
        raise BadInput(f"logits on the {one.split.name} set are not finite: check the weights")
    for index, token in table.nlargest(20, "kl").iterrows():
        ids = one.tokens.ids[token["row"]][: token["position"] + 1]
        table.loc[index, "context"] = tokenizer.decode(ids[-15:])
    return table.assign(text=one.tokens.documents[table.row], agreement=table.base == table.changed)


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
    """Compare every changed model with the base, which is loaded once."""
    import pandas as pd

    from model_diffs.activations import passes
    from model_diffs.models import loading

    sample, tokenizer = passes.of_splits(options, [options.model_a, *options.model_b])
    base: Any = loading.load_for(options, options.model_a)
    for planned in todo:
        models = [base, loading.load_for(options, planned.model_b)]
        with open_run(planned) as run:
            rows = pd.concat(compared(models, tokenizer, one) for one in sample)
            write(run, rows, tokenizer, options.seed)
            passes.describe(run, [planned.model_a, planned.model_b], sample, base.dtype)


if __name__ == "__main__":
    run_step(__name__)
