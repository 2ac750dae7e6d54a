"""Sparse autoencoders as they are used: a vector in, its few active features out.

An activation that no feature is active for is zero everywhere but there, so features are kept as
(token, feature, value) triples. Pre-activations are dense for a few hundred tokens at a time only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DECODER_ROWS = 1 << 22  # entries of decoder rows that are gathered at a time: 16 MiB
_DENSE_SHARE = 0.05  # of active features from which all products together cost less than gathering


class Features(NamedTuple):
    """The active features of some tokens, `[active]` each; all others are zero."""

    tokens: Tensor
    features: Tensor
    values: Tensor
    """fp32, above zero."""


@dataclass(frozen=True)
class Sae:
    """A sparse autoencoder in fp32, whatever format it was stored in.

    f = activation((x − b_dec) W_encᵀ + b_enc), b_dec only where `subtract`; x̂ = f W_dec + b_dec.
    """

    encoder: Tensor
    """W_enc `[d_sae, d_in]`."""
    encoder_bias: Tensor
    """`[d_sae]`: b_enc, or b_gate of a gated one."""
    decoder: Tensor
    """W_dec `[d_sae, d_out]`, a row per feature."""
    decoder_bias: Tensor
    """`[d_out]`."""
    activation: str
    """relu, topk, batchtopk, jumprelu or gated."""
    subtract: bool
    """Whether b_dec is taken off before encoding."""
    k: int = 0
    """Active features per token at most, of topk."""
    threshold: Tensor | None = None
    """`[d_sae]` or a single number, of jumprelu and batchtopk."""
    magnitude: Tensor | None = None
    """`[2, d_sae]`: exp(r_mag) and b_mag, of gated."""
    transcoder: bool = False
    """Encodes what enters the MLP, and stands for what leaves it."""
    normalise: str = ""
    """What is done to each activation first: nothing, `layer_norm` or `constant_norm`."""
    centred: bool = False
    """Whether it encodes activations without their mean."""

    @property
    def d_in(self) -> int:
        """Width of what it encodes."""
        return self.encoder.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    def to(self, device: torch.device) -> "Sae":
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def scale_of(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Shift and scale `[n, 1]` of each activation x `[n, d_in]`, (x − shift) / scale being what
        is encoded and x̂ · scale + shift what is decoded; None where nothing is done to it."""
        if not self.normalise:
            return None
        x = x.float()
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        if self.normalise == "constant_norm":
            return x.new_zeros(len(x), 1), x.norm(dim=-1, keepdim=True) / self.d_in**0.5
        # SAELens: the standard deviation with n − 1, and ε added to it.
        return x.mean(-1, keepdim=True), x.std(-1, keepdim=True) + 1e-5

    def encode(self, x: Tensor) -> Features:
        """Active features of x `[n, d_in]`, n so small that `[n, d_sae]` can be held."""
        scale, x = self.scale_of(x), x.float()
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        if scale is not None:
            x = (x - scale[0]) / scale[1]
        if self.subtract:
            x = x - self.decoder_bias
        if self.magnitude is not None:
            return self._gated(x, *self.magnitude)
        pre = torch.addmm(self.encoder_bias, x, self.encoder.T)
        if self.activation == "topk":
            values, features = pre.topk(self.k, sorted=False)
            rows, places = (values > 0).nonzero(as_tuple=True)
            return Features(rows, features[rows, places], values[rows, places])
        active = pre > 0
        if self.threshold is not None:
            active &= pre > self.threshold
        return _taken(pre, active)

    def _gated(self, x: Tensor, scale: Tensor, bias: Tensor) -> Features:
        """The gate says which features are active, the magnitude how much (Rajamanoharan 2024)."""
        product = x @ self.encoder.T
        magnitude = product * scale + bias
        return _taken(magnitude, (product + self.encoder_bias > 0) & (magnitude > 0))

    def decode(self, found: Features, tokens: int) -> Tensor:
        """x̂ `[tokens, d_out]`; differentiable in the features' values."""
        out = self.decoder_bias.expand(tokens, -1)
        for part in _parts(found, self.decoder.shape[1]):
            rows = self.decoder[part.features] * part.values[:, None]
            out = out.index_add(0, part.tokens, rows)
        return out

    def reconstruct(self, x: Tensor, found: Features) -> Tensor:
        """x̂ `[n, d_out]` of activations x `[n, d_in]` and their features, in the units of x."""
        scale, decoded = self.scale_of(x), self.decode(found, len(x))
        if scale is not None:
            decoded = decoded * scale[1] + scale[0]
        # Its mean was taken off, so it stands for the rest of x only.
        return decoded + x.float().mean(-1, keepdim=True) if self.centred else decoded

    def slopes(self, found: Features, gradient: Tensor, x: Tensor | None = None) -> Tensor:
        """`[active]`: ∂loss/∂f of each active feature, from ∂loss/∂x̂ `[n, d_out]`.

        With the error added back, x̂ enters the model as x does and x̂ = f W_dec + b_dec, so it is
        ⟨∂loss/∂x, W_dec[feature]⟩, times the scale of the activation x `[n, d_in]` that it was
        encoded from, where it is normalised.
        """
        gradient = self._scaled(gradient, x)
        if len(found.values) > _DENSE_SHARE * len(gradient) * self.d_sae:
            return (gradient @ self.decoder.T)[found.tokens, found.features]
        products = [
            torch.einsum("nd,nd->n", gradient[part.tokens], self.decoder[part.features])
            for part in _parts(found, self.decoder.shape[1])
        ]
        return torch.cat(products) if products else found.values

    def all_slopes(self, x: Tensor, gradient: Tensor) -> Tensor:
        """`[n, d_sae]`: the same of every feature, active or not."""
        return self._scaled(gradient, x) @ self.decoder.T

    def _scaled(self, gradient: Tensor, x: Tensor | None) -> Tensor:
        scale = None if x is None or self.transcoder else self.scale_of(x)
        return gradient.float() if scale is None else gradient.float() * scale[1]


def _taken(values: Tensor, active: Tensor) -> Features:
    rows, features = active.nonzero(as_tuple=True)
    return Features(rows, features, values[rows, features])


def _parts(found: Features, width: int) -> Iterator[Features]:
    """Pieces whose decoder rows fit into the memory that is set aside for them."""
    step = max(1, _DECODER_ROWS // width)
    for start in range(0, len(found.values), step):
        yield Features(*(column[start : start + step] for column in found))
