"""What a dimension is: an entry of an activation, or a feature of a sparse autoencoder of it.

A lens has `entering`, the site that it encodes where that is another one than it stands for, and
`sums(layer, x, entered, gradient)`. n counted tokens of one batch: x `[n, d]` is the activation in
the model's dtype, `entered` `[n, hidden]` the one at `entering` (None without), `gradient` `[n, d]`
that of the batch's summed loss (None in a pass over values). `sums` gives `[2, size]` fp64: signed
and absolute sums over tokens of each dimension's value, or of its gradient where there is one.
"""

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Sae
from model_diffs.models.devices import wide

_PRE_ACTIVATIONS = 1 << 24  # entries that are dense at a time: 64 MiB


class Neurons:
    """A dimension is an entry of the activation itself."""

    entering: str | None = None

    def sums(
        self, layer: int, x: Tensor, entered: Tensor | None, gradient: Tensor | None
    ) -> Tensor:
        values = wide(x if gradient is None else gradient)
        return torch.stack([values.sum(0), values.abs().sum(0)])


class SaeFeatures:
    """A dimension is a feature of a layer's autoencoder; inactive ones have value 0, and gradient 0
    unless `inactive`.

    `entering`: the site that transcoders encode.
    """

    def __init__(
        self, coders: dict[int, Sae], entering: str | None = None, inactive: bool = False
    ) -> None:
        self.coders, self.inactive = coders, inactive
        transcoders = any(coder.transcoder for coder in coders.values())
        self.entering = (entering or "mlp_in") if transcoders else None

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
        home = coder.encoder.device  # a model spread over devices may be elsewhere
        sums = wide(torch.zeros(2, coder.d_sae, device=home))
        step = max(1, _PRE_ACTIVATIONS // coder.d_sae)  # tokens at a time
        for start in range(0, len(x), step):
            part = x[start : start + step].to(home)
            slope = None if gradient is None else gradient[start : start + step].to(home)
            if slope is not None and self.inactive:
                values = wide(coder.all_slopes(part, slope))
                sums += torch.stack([values.sum(0), values.abs().sum(0)])
                continue
            found = coder.encode(part)
            values = found.values if slope is None else coder.slopes(found, slope, part)
            values, features = wide(values), found.features.to(sums.device)
            sums[0].index_add_(0, features, values)
            sums[1].index_add_(0, features, values.abs())
        return sums


Lens = Neurons | SaeFeatures
