"""Which features of a sparse autoencoder are active, or matter to the loss?

As layer_gradient_analysis.py, with the features of an SAE of each layer's activation in place of
its entries. Gradients are taken at the features with the reconstruction error added back, so that
the model's loss is unchanged; inactive features have none, or all have with --inactive. Formats:
sparsify, SAELens, dictionary_learning, GemmaScope, LlamaScope; what is read is the activation that
the SAEs were trained on. Without --layers, all layers that have an SAE.

    uv run important_acts_ftrs/sae_gradient_analysis.py --model ./models/miniature-base \\
        --sae models/miniature-sae --dataset data/miniature/forget.txt --save-outputs
    uv run important_acts_ftrs/sae_gradient_analysis.py --model google/gemma-2-2b \\
        --sae google/gemma-scope-2b-pt-res --width 16k --l0 100 --layers 12 --save-outputs

Prints a line per layer. With --save-outputs writes
<outroot>/importance/sae_features_model_…_{timestamp}/, as the other script does.
"""

from dataclasses import dataclass, replace

from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.options import option
from model_diffs.core.script import run_script
from model_diffs.dictionaries.options import SaeChoice
from model_diffs.importance import options as importance
from model_diffs.importance.saved import check_places, load_results

__all__ = ["load_results"]


@dataclass(frozen=True, kw_only=True)
class Options(importance.Options, SaeChoice):
    """Sparse autoencoders."""

    sae: str = option(
        "", "folder, org/name[/folder] or release:id; default: those known for the model"
    )
    inactive: bool = option(False, "with gradients: also those of features that are not active")


def main() -> None:
    """Measure every feature."""
    options = parse(Options, None, __doc__)
    if options.inactive and options.aggregate_by != "gradients":
        raise BadInput("--inactive has no effect on values: add --aggregate-by gradients")
    check_places(options)
    from model_diffs.dictionaries import sae_choice, sae_releases, sae_sources
    from model_diffs.importance import running
    from model_diffs.importance.lenses import SaeFeatures
    from model_diffs.models.checkpoints import Checkpoint

    source = options.sae or sae_releases.of_model(options.model)
    checkpoint = Checkpoint.open(options.model)
    layers = running.layers_of(options, checkpoint)
    choice = sae_choice.choose_for(
        source, checkpoint, None if options.layers is None else layers, options.site, options
    )
    found = {layer: sae_sources.fetch(one) for layer, one in choice.chosen.items()}
    saes = {n: sae_choice.read(one, checkpoint, options.centred) for n, one in found.items()}
    running.run(
        replace(options, sae=source, site=choice.site),
        checkpoint,
        "sae_features",
        tuple(found),
        lambda device: SaeFeatures(
            {layer: sae.to(device) for layer, sae in saes.items()},
            choice.entering,
            options.inactive,
        ),
        reads=[file for one in found.values() for file in sae_sources.files_of(one)],
        facts={
            "dictionaries": {layer: sae_sources.describe(one) for layer, one in found.items()},
            "formats": sorted({one.format for one in found.values()}),
        },
    )


if __name__ == "__main__":
    run_script(main)
