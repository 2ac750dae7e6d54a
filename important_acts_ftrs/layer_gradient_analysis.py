"""Which neurons of a layer are active, or matter to the loss?

Per layer and dimension of the MLP's output (or of its last matrix's input, or of the block's
output): the mean over tokens of the activation, or of the gradient of the mean next-token loss.
One pass over the texts serves all layers.

    uv run important_acts_ftrs/layer_gradient_analysis.py --model ./models/miniature-base \\
        --dataset data/miniature/forget.txt --aggregation-mode both --save-outputs
    uv run important_acts_ftrs/layer_gradient_analysis.py --aggregate-by gradients \\
        --layers 0-3,23 --power 0.5,2 --save-outputs

Prints a line per layer. With --save-outputs writes
<outroot>/importance/layer_activations_model_…_{timestamp}/ with .npy files, figures,
consolidated_results.npz, metadata.json, timing_stats.json and timing_summary.txt.
"""

from model_diffs.core.command_line import parse
from model_diffs.core.script import run_script
from model_diffs.importance.options import Options
from model_diffs.importance.saved import check_places, load_results

__all__ = ["Options", "load_results"]


def main() -> None:
    """Measure every entry of the activations."""
    options = parse(Options, None, __doc__)
    check_places(options)
    from model_diffs.importance import running
    from model_diffs.importance.lenses import Neurons
    from model_diffs.models.checkpoints import Checkpoint

    checkpoint = Checkpoint.open(options.model)
    layers = running.layers_of(options, checkpoint)
    running.run(options, checkpoint, "layer_activations", layers, lambda _: Neurons())


if __name__ == "__main__":
    run_script(main)
