"""Which features of a sparse autoencoder are active, or matter to the loss?

As layer_gradient_analysis.py, with the features of an SAE of each layer's activation in place of
its entries. Gradients are taken at the features with the reconstruction error added back, so that
the model's loss is unchanged; inactive features have none. Formats: sparsify, SAELens,
dictionary_learning. Flags take dashes as well as underscores.

    uv run important_acts_ftrs/sae_gradient_analysis.py --model_name ./models/miniature-base \\
        --sae models/miniature-sae --dataset data/miniature/forget.txt --save_outputs
    uv run important_acts_ftrs/sae_gradient_analysis.py --model_name EleutherAI/pythia-160m \\
        --sae EleutherAI/sae-pythia-160m-32k --aggregate_by gradients --layers 3,5 --save_outputs

Prints a line per layer. With --save_outputs writes
<outroot>/importance/sae_features_model_…_{timestamp}/, as the other script does.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_diffs.core import arguments
from model_diffs.core.errors import BadInput
from model_diffs.importance import importance_options
from model_diffs.importance.saved import load_results

if TYPE_CHECKING:
    import torch

    from model_diffs.importance.lenses import Lens

__all__ = ["load_results"]

PREFIX = "sae_features"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = importance_options.new_parser(__doc__)
    parser.add_argument("--sae", required=True, help="folder or hub name of the SAEs")
    return importance_options.parse(parser, argv)


def main() -> None:
    """Measure every feature; of all layers, where none are named, those that have an SAE."""
    options = parse_arguments()
    from model_diffs.dictionaries import sae_files, sae_sources
    from model_diffs.importance import running
    from model_diffs.importance.lenses import SaeFeatures
    from model_diffs.models.checkpoints import Checkpoint

    importance_options.check_places(options)
    checkpoint = Checkpoint.open(options.model_name)
    count = running.block_count(checkpoint)
    found = sae_sources.find(options.sae)
    if options.layers is not None:
        importance_options.layers_of(options.layers, count, options.model_name)
    chosen = sae_sources.choose(options.sae, found, options.layers, options.site)
    layers = tuple(chosen)
    if layers[-1] >= count:
        raise BadInput(
            f"{options.sae} has an SAE for layer {layers[-1]}, and {options.model_name} has layers "
            f"0-{count - 1}: use the SAEs of this model, or name --layers"
        )
    fetched = {layer: sae_sources.fetch(one) for layer, one in chosen.items()}
    saes = {layer: sae_files.read_sae(one.folder, one.format) for layer, one in fetched.items()}

    def lens_on(device: "torch.device") -> "Lens":
        return SaeFeatures({layer: sae.to(device) for layer, sae in saes.items()})

    analysis = running.analyse(
        *(options, PREFIX, layers, checkpoint, lens_on),
        [file for one in fetched.values() for file in sae_sources.files_of(one)],
        dictionaries={layer: sae_sources.describe(one) for layer, one in fetched.items()},
        formats=sorted({one.format for one in fetched.values()}),
    )
    running.finish(analysis)


if __name__ == "__main__":
    arguments.run_script(main)
