"""Which features of a sparse autoencoder are active, or matter to the loss?

As layer_gradient_analysis.py, with the features of an SAE of each layer's activation in place of
its entries. Gradients are taken at the features with the reconstruction error added back, so that
the model's loss is unchanged; inactive features have none. Formats: sparsify, SAELens,
dictionary_learning. Without --layers, all layers that have an SAE.

    uv run important_acts_ftrs/sae_gradient_analysis.py --model ./models/miniature-base \\
        --sae models/miniature-sae --dataset data/miniature/forget.txt --save-outputs
    uv run important_acts_ftrs/sae_gradient_analysis.py --model EleutherAI/pythia-160m \\
        --sae EleutherAI/sae-pythia-160m-32k --aggregate-by gradients --layers 3,5 --save-outputs

Prints a line per layer. With --save-outputs writes
<outroot>/importance/sae_features_model_…_{timestamp}/, as the other script does.
"""

from dataclasses import dataclass

from model_diffs.core.errors import BadInput
from model_diffs.core.options import option, parse
from model_diffs.core.script import run_script
from model_diffs.importance import options as importance
from model_diffs.importance.saved import check_places, load_results

__all__ = ["load_results"]


@dataclass(frozen=True, kw_only=True)
class Options(importance.Options):
    """Sparse autoencoders."""

    sae: str = option(help="folder or hub name of the SAEs")


def main() -> None:
    """Measure every feature."""
    options = parse(Options, None, __doc__)
    check_places(options)
    from model_diffs.dictionaries import sae_files, sae_sources
    from model_diffs.importance import running
    from model_diffs.importance.lenses import SaeFeatures
    from model_diffs.models.checkpoints import Checkpoint

    checkpoint = Checkpoint.open(options.model)
    layers = running.layers_of(options, checkpoint)
    available = sae_sources.find(options.sae)
    chosen = sae_sources.choose(
        options.sae, available, None if options.layers is None else layers, options.site
    )
    if max(chosen) > layers[-1]:
        raise BadInput(
            f"{options.sae} has an SAE for layer {max(chosen)}, and {options.model} has layers "
            f"0-{layers[-1]}: use the SAEs of this model, or name --layers"
        )
    found = {layer: sae_sources.fetch(one) for layer, one in chosen.items()}
    saes = {layer: sae_files.read_sae(one.folder, one.format) for layer, one in found.items()}
    running.run(
        options,
        checkpoint,
        "sae_features",
        tuple(found),
        lambda device: SaeFeatures({layer: sae.to(device) for layer, sae in saes.items()}),
        reads=[file for one in found.values() for file in sae_sources.files_of(one)],
        facts={
            "dictionaries": {layer: sae_sources.describe(one) for layer, one in found.items()},
            "formats": sorted({one.format for one in found.values()}),
        },
    )


if __name__ == "__main__":
    run_script(main)
