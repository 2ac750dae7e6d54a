"""What a dimension is: an entry of an activation, or a feature of a sparse autoencoder of it."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Sae

_PRE_ACTIVATIONS = 1 << 24  # entries that are dense at a time: 64 MiB


class Activations(NamedTuple):
    """The n counted tokens of one batch at one layer."""

    x: Tensor
    """`[n, d]`, the activation in the model's dtype."""
    entered: Tensor | None
    """`[n, hidden]`, what entered the MLP, where the lens asks for it."""
    gradient: Tensor | None
    """`[n, d]`: gradient of the summed loss of the batch; None in a pass over values."""


class Lens(Protocol):
    """What a dimension is."""

    wants_entered: bool
    """Whether it reads what enters the MLP."""

    def sums(self, layer: int, at: Activations) -> Tensor:
        """`[2, size]` fp64: signed and absolute sums over tokens of each dimension's value, or of
        its gradient where there is one. BadInput where the layer does not fit."""


def _double(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()


class Neurons:
    """A dimension is an entry of the activation itself."""

    wants_entered = False

    def sums(self, layer: int, at: Activations) -> Tensor:
        values = _double(at.x if at.gradient is None else at.gradient)
        return torch.stack([values.sum(0), values.abs().sum(0)])


class SaeFeatures:
    """A dimension is a feature of a layer's autoencoder; inactive ones have value, gradient 0."""

    def __init__(self, coders: dict[int, Sae]) -> None:
        self.coders = coders
        self.wants_entered = any(coder.transcoder for coder in coders.values())

    def _input(self, layer: int, at: Activations) -> Tensor:
        """What the layer's SAE encodes, its widths checked."""
        coder, width = self.coders[layer], self.coders[layer].decoder.shape[1]
        if at.x.shape[-1] != width:
            raise BadInput(
                f"layer {layer}: the activation is {at.x.shape[-1]} wide, its SAE is for {width}: "
                "use the SAE of this model, or another --site"
            )
        x = at.entered if coder.transcoder and at.entered is not None else at.x
        if x.shape[-1] != coder.d_in:
            raise BadInput(
                f"layer {layer}: the MLP reads {x.shape[-1]} entries, its transcoder is for "
                f"{coder.d_in}: use one of this model"
            )
        return x

    def sums(self, layer: int, at: Activations) -> Tensor:
        x, coder = self._input(layer, at), self.coders[layer]
        sums = _double(x.new_zeros(2, coder.d_sae))
        step = max(1, _PRE_ACTIVATIONS // coder.d_sae)  # tokens at a time
        for start in range(0, len(x), step):
            found = coder.encode(x[start : start + step])
            values = found.values
            if at.gradient is not None:
                values = coder.slopes(found, at.gradient[start : start + step])
            values, features = _double(values), found.features.to(sums.device)
            sums[0].index_add_(0, features, values)
            sums[1].index_add_(0, features, values.abs())
        return sums
