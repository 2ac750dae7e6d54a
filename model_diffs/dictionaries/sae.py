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

    def encode(self, x: Tensor) -> Features:
        """Active features of x `[n, d_in]`, n so small that `[n, d_sae]` can be held."""
        x = x.float()
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

    def slopes(self, found: Features, gradient: Tensor) -> Tensor:
        """`[active]`: ∂loss/∂f of each active feature, from ∂loss/∂x̂ `[n, d_out]`.

        With the error added back, x̂ enters the model as x does and x̂ = f W_dec + b_dec, so it is
        ⟨∂loss/∂x, W_dec[feature]⟩.
        """
        gradient = gradient.float()
        if len(found.values) > _DENSE_SHARE * len(gradient) * self.d_sae:
            return (gradient @ self.decoder.T)[found.tokens, found.features]
        products = [
            torch.einsum("nd,nd->n", gradient[part.tokens], self.decoder[part.features])
            for part in _parts(found, self.decoder.shape[1])
        ]
        return torch.cat(products) if products else found.values


def _taken(values: Tensor, active: Tensor) -> Features:
    rows, features = active.nonzero(as_tuple=True)
    return Features(rows, features, values[rows, features])


def _parts(found: Features, width: int) -> Iterator[Features]:
    """Pieces whose decoder rows fit into the memory that is set aside for them."""
    step = max(1, _DECODER_ROWS // width)
    for start in range(0, len(found.values), step):
        yield Features(*(column[start : start + step] for column in found))
