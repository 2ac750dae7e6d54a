"""What a dimension is: an entry of an activation, or a feature of a sparse autoencoder of it."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Sae

_PRE_ACTIVATIONS = 1 << 24  # entries that are dense at a time: 64 MiB


class Activations(NamedTuple):
    """The counted tokens of one batch at one layer."""

    x: Tensor
    """`[n, d]`, the activation in the model's dtype."""
    entered: Tensor | None
    """`[n, hidden]`, what entered the MLP, where the lens asks for it."""
    gradient: Tensor | None
    """`[n, d]`: gradient of the summed loss of the batch; None in a pass over values."""


class LayerSums:
    """Sums over tokens, signed and absolute: `[2, size]` fp64, on a device that has fp64."""

    def __init__(self, size: int, device: torch.device) -> None:
        place = torch.device("cpu") if device.type == "mps" else device
        self.sums = torch.zeros(2, size, dtype=torch.float64, device=place)

    def add_dense(self, values: Tensor) -> None:
        """Add `[n, size]`."""
        values = values.to(self.sums.device).double()
        self.sums += torch.stack([values.sum(0), values.abs().sum(0)])

    def add_sparse(self, features: Tensor, values: Tensor) -> None:
        """Add `values` `[nnz]` to their `features` `[nnz]`; everything else is zero."""
        features, values = features.to(self.sums.device), values.to(self.sums.device).double()
        self.sums[0].index_add_(0, features, values)
        self.sums[1].index_add_(0, features, values.abs())


class Lens(Protocol):
    """What a dimension is."""

    wants_entered: bool
    """Whether it reads what enters the MLP."""

    def size(self, layer: int, width: int) -> int:
        """Dimensions of a layer whose activation is `width` wide. BadInput where that is wrong."""

    def add(self, sums: LayerSums, layer: int, at: Activations) -> None:
        """Add values, or gradients where there are some."""


class Neurons:
    """A dimension is an entry of the activation itself."""

    wants_entered = False

    def size(self, layer: int, width: int) -> int:
        """As wide as the activation."""
        return width

    def add(self, sums: LayerSums, layer: int, at: Activations) -> None:
        """All entries are there: sum them."""
        sums.add_dense(at.x if at.gradient is None else at.gradient)


class SaeFeatures:
    """A dimension is a feature of a layer's dictionary: the lens of the SAE tool.

    Inactive features have value zero and, since nothing flows through them, gradient zero.
    """

    def __init__(self, coders: dict[int, Sae]) -> None:
        self.coders = coders
        self.wants_entered = any(coder.transcoder for coder in coders.values())

    def size(self, layer: int, width: int) -> int:
        """Features of the layer's dictionary."""
        coder = self.coders[layer]
        expected = coder.decoder.shape[1]
        if width != expected:
            raise BadInput(
                f"layer {layer}: the activation is {width} wide, its SAE is for {expected}: use "
                "the SAE of this model, or another --site"
            )
        return coder.d_sae

    def add(self, sums: LayerSums, layer: int, at: Activations) -> None:
        """Add the active features of some hundred tokens at a time."""
        coder = self.coders[layer]
        x = at.entered if coder.transcoder and at.entered is not None else at.x
        if x.shape[-1] != coder.d_in:
            raise BadInput(
                f"layer {layer}: the MLP reads {x.shape[-1]} entries, its transcoder is for "
                f"{coder.d_in}: use one of this model"
            )
        step = max(1, _PRE_ACTIVATIONS // coder.d_sae)
        for start in range(0, len(x), step):
            found = coder.encode(x[start : start + step])
            values = found.values
            if at.gradient is not None:
                values = coder.slopes(found, at.gradient[start : start + step])
            sums.add_sparse(found.features, values)
