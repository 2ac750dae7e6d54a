"""Step 4. How large are the hidden states, and how far did the intervention move them?

Both models read the forget and the retain texts in one pass; per layer the mean L1 and L2 norm of
each, the norm of the difference, its size relative to the base and the cosine are averaged over
tokens, with 95 % intervals over documents. Everything else that later steps need from the same
pass is saved on the way, under <outroot>/activation_cache/.

    uv run collect_activation_norms.py --model-a ./models/miniature-base \\
        --model-b ./models/miniature-filtered \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run collect_activation_norms.py --model-a EleutherAI/deep-ignorance-unfiltered \\
        --model-b EleutherAI/deep-ignorance-unfiltered-cb-lat --max-samples 100

Writes <outroot>/<A>__to__<B>/activation_stats/{activation_stats,per_text}.csv.
"""

import argparse
from collections.abc import Sequence

from model_diffs.core import arguments, results
from model_diffs.core.results import PlannedRun

FOLDER = "activation_stats"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_comparison(parser)
    arguments.add_texts(parser)
    arguments.add_compute(parser)
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per comparison."""
    return arguments.comparison_runs(options, FOLDER)


def main() -> None:
    """Collect what is not complete, all comparisons in one pass."""
    options = parse_arguments()
    todo = results.pending(planned_runs(options), options.force)
    if not todo:
        return
    from model_diffs.activations import store
    from model_diffs.diagnostics.activation_norms import norm_rows, text_rows

    pairs = [(planned.model_a, planned.model_b) for planned in todo]
    models = [model for pair in pairs for model in pair]
    found = store.statistics(options, models, pairs, fresh=options.force)
    norms = ("tokens", "norm_l1", "norm_l2")
    for planned in todo:
        with results.open_run(planned) as run:
            rows, texts = [], []
            for split in found.splits:
                base = found.models[split.name, planned.model_a].read(*norms)
                changed = found.models[split.name, planned.model_b].read(*norms)
                difference = found.differences[split.name, planned.model_b].read()
                rows += norm_rows(split.name, base, changed, difference, options.seed)
                texts += text_rows(split.name, difference)
            run.table("activation_stats", rows)
            run.table("per_text", texts)
            store.describe(run, found)


if __name__ == "__main__":
    arguments.run_script(main)
