"""What a dimension is: an entry of an activation, or a feature of a sparse autoencoder of it.

A lens has `wants_entered`, whether it reads what enters the MLP, and `sums(layer, x, entered,
gradient)`. n counted tokens of one batch: x `[n, d]` is the activation in the model's dtype,
`entered` `[n, hidden]` what entered the MLP (None unless wanted), `gradient` `[n, d]` that of the
batch's summed loss (None in a pass over values). `sums` gives `[2, size]` fp64: signed and absolute
sums over tokens of each dimension's value, or of its gradient where there is one.
"""

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Sae
from model_diffs.models.devices import wide

_PRE_ACTIVATIONS = 1 << 24  # entries that are dense at a time: 64 MiB


class Neurons:
    """A dimension is an entry of the activation itself."""

    wants_entered = False

    def sums(
        self, layer: int, x: Tensor, entered: Tensor | None, gradient: Tensor | None
    ) -> Tensor:
        values = wide(x if gradient is None else gradient)
        return torch.stack([values.sum(0), values.abs().sum(0)])


class SaeFeatures:
    """A dimension is a feature of a layer's autoencoder; inactive ones have value, gradient 0."""

    def __init__(self, coders: dict[int, Sae]) -> None:
        self.coders = coders
        self.wants_entered = any(coder.transcoder for coder in coders.values())

    def sums(
        self, layer: int, x: Tensor, entered: Tensor | None, gradient: Tensor | None
    ) -> Tensor:
        """Raises BadInput where the SAE is for another width."""
        coder = self.coders[layer]
        width = coder.decoder.shape[1]
        if x.shape[-1] != width:
            raise BadInput(
                f"layer {layer}: the activation is {x.shape[-1]} wide, its SAE is for {width}: "
                "use the SAE of this model, or another --site"
            )
        if coder.transcoder and entered is not None:
            x = entered
        if x.shape[-1] != coder.d_in:
            raise BadInput(
                f"layer {layer}: the MLP reads {x.shape[-1]} entries, its transcoder is for "
                f"{coder.d_in}: use one of this model"
            )
        sums = wide(x.new_zeros(2, coder.d_sae))
        step = max(1, _PRE_ACTIVATIONS // coder.d_sae)  # tokens at a time
        for start in range(0, len(x), step):
            found = coder.encode(x[start : start + step])
            values = found.values
            if gradient is not None:
                values = coder.slopes(found, gradient[start : start + step])
            values, features = wide(values), found.features.to(sums.device)
            sums[0].index_add_(0, features, values)
            sums[1].index_add_(0, features, values.abs())
        return sums


Lens = Neurons | SaeFeatures
