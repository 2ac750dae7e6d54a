"""Step 4. How large are the hidden states, and how far did the intervention move them?

All models read the forget and the retain set in one pass. Per hidden state: mean L1 and L2 norm of
base and changed model, norm of the difference, its size relative to the base, and cosine, averaged
over unmasked tokens, with 95 % bootstrap intervals over documents. All statistics that later steps
need from the same pass are saved under <outroot>/activation_cache/.

    uv run collect_activation_norms.py --model-a ./models/miniature-base \
        --model-b ./models/miniature-filtered \
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run collect_activation_norms.py --model-a EleutherAI/deep-ignorance-unfiltered \
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-samples 100

Writes <outroot>/<A>__to__<B>/activation_stats/{activation_stats,per_text}.csv.
"""

from dataclasses import dataclass

from model_diffs.core.options import Comparison, Pass
from model_diffs.core.results import PlannedRun, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Measure, Step, Table

STEP = Step(
    number=4,
    folder="activation_stats",
    question="How far did hidden states move, on forget and on retain texts?",
    memory="model_diffs.activations.memory:COMPARISONS",
    needs=("forget", "retain"),
    processes=True,
    version=2,
    tables=(Table("activation_stats"), Table("per_text")),
    measures=tuple(
        Measure(
            f"dh_{split}",
            axis="function",
            table="activation_stats",
            column="mean_dh_rel_residual",
            where={"split": split},
            label=f"‖Δh‖/‖h‖, {split}",
            meaning=f"Change of {split}-set hidden states relative to their norm; mean over the "
            "outputs of all blocks, the last before the final norm.",
            layers="states",
            paired_by="text",
            kept="per_text",
            kept_column="mean_dh_rel",
            unchanged=0.0,
            above=f"moves {split}-set hidden states farther than filtering does",
            below=f"moves {split}-set hidden states less far than filtering does",
            same="does not differ significantly from the filtered model in how far "
            f"{split}-set hidden states move",
        )
        for split in ("forget", "retain")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Pass):
    """Activation norms."""


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Collect all comparisons in one pass."""
    import pandas as pd

    from model_diffs.activations import store
    from model_diffs.diagnostics.activation_norms import norm_table, text_table

    pairs = [(planned.model_a, planned.model_b) for planned in todo]
    models = [model for pair in pairs for model in pair]
    found = store.statistics(options, models, pairs, fresh=options.force)
    for planned in todo:
        with open_run(planned) as run:
            tables, texts = [], []
            for split in found.splits:
                base = found.models[split.name, planned.model_a]
                changed = found.models[split.name, planned.model_b]
                difference = found.differences[split.name, planned.model_b]
                tables.append(norm_table(base, changed, difference, options.seed))
                texts.append(text_table(difference))
            run.table("activation_stats", pd.concat(tables))
            run.table("per_text", pd.concat(texts))
            store.describe(run, found)


if __name__ == "__main__":
    run_step(__name__)
