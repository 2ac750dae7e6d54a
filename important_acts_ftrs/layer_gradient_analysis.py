"""Which neurons of a layer are active, or matter to the loss?

Per layer and dimension of the MLP's output (or of what its last matrix reads, or of the block's
output): the mean over tokens of the activation, or of the gradient of the mean next-token loss.
One pass over the texts serves all layers. Flags take dashes as well as underscores.

    uv run important_acts_ftrs/layer_gradient_analysis.py --model_name ./models/miniature-base \\
        --dataset data/miniature/forget.txt --aggregation_mode both --save_outputs
    uv run important_acts_ftrs/layer_gradient_analysis.py --aggregate_by gradients \\
        --layers 0-3,23 --power 0.5,2 --save_outputs

Prints a line per layer. With --save_outputs writes
<outroot>/importance/layer_activations_model_…_{timestamp}/ with .npy files, figures,
consolidated_results.npz, metadata.json, timing_stats.json and timing_summary.txt.
"""

import argparse
from collections.abc import Sequence

from model_diffs.core import arguments
from model_diffs.importance import importance_options
from model_diffs.importance.saved import load_results

__all__ = ["load_results"]

PREFIX = "layer_activations"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    return importance_options.parse(importance_options.new_parser(__doc__), argv)


def main() -> None:
    """Measure every entry of the activations."""
    options = parse_arguments()
    from model_diffs.importance import running
    from model_diffs.importance.lenses import Neurons
    from model_diffs.models.checkpoints import Checkpoint

    importance_options.check_places(options)
    checkpoint = Checkpoint.open(options.model_name)
    count = running.block_count(checkpoint)
    layers = importance_options.layers_of(options.layers, count, options.model_name)
    found = running.analyse(options, PREFIX, layers, checkpoint, lambda _: Neurons())
    running.finish(found)


if __name__ == "__main__":
    arguments.run_script(main)
