"""The tensors of a sparse autoencoder, which the formats name differently, made into an `Sae`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Sae


def number(name: str, config: Mapping[str, Any]) -> int:
    """A size of a configuration. BadInput where it is no whole number."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInput(f"{name} is {value!r} in its configuration; a whole number is expected")
    return value


class Tensors(dict[str, Tensor]):
    """Tensors by name; the formats name the same ones differently."""

    def take(self, *names: str, shape: tuple[int | None, ...]) -> Tensor:
        """The tensor of one of these names, in fp32; None in `shape` is any size."""
        name = next((name for name in names if name in self), None)
        if name is None:
            raise BadInput(f"no tensor {' or '.join(names)}; it has {', '.join(sorted(self))}")
        tensor = self[name]
        if len(shape) != tensor.ndim or any(
            wanted not in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
        ):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise BadInput(f"{name} is {list(tensor.shape)}, expected [{expected}]")
        if not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{name} holds NaN or Inf")
        return tensor.float()

    def matrix(self, name: str, transposed: str, rows: int | None, columns: int | None) -> Tensor:
        """The matrix `name` `[rows, columns]`, or the transpose of the matrix `transposed`."""
        if transposed in self:
            return self.take(transposed, shape=(columns, rows)).T
        return self.take(name, transposed, shape=(rows, columns))

    def sae(
        self,
        activation: str,
        d: int,
        latents: int | None,
        subtract: bool,
        k: Any,
        transcoder: bool = False,
        scaled: bool = False,
    ) -> Sae:
        """The SAE; without `latents`, of as many as its weights have.

        `scaled`: features times the norms of their rows of W_dec, with rows of norm 1.
        """
        encoder = self.matrix("encoder.weight", "W_enc", latents, d)
        latents = len(encoder)
        biases = ("b_gate", "gate_bias") if activation == "gated" else ("b_enc", "encoder.bias")
        encoder_bias = self.take(*biases, shape=(latents,))
        decoder = self.matrix("W_dec", "decoder.weight", latents, None if transcoder else d)
        if scaled:
            norm = decoder.norm(dim=-1)  # the same x̂, so it is done once here
            encoder, encoder_bias = encoder * norm[:, None], encoder_bias * norm
            decoder = decoder / norm[:, None]
        b_dec = ("b_dec", "decoder_bias", "decoder.bias", "bias")
        return Sae(
            encoder=encoder,
            encoder_bias=encoder_bias,
            decoder=decoder.contiguous(),  # rows are gathered from it later
            decoder_bias=self.take(*b_dec, shape=(decoder.shape[1],)),
            activation=activation,
            subtract=subtract,
            transcoder=transcoder,
            **self.of_activation(activation, latents, k),
        )

    def of_activation(self, activation: str, latents: int, k: Any) -> dict[str, Any]:
        """The fields of an Sae that its activation needs.

        batchtopk is read with its threshold: with the top k of a batch, a token's features would
        depend on the batch that it is in.
        """
        if activation == "topk":
            if not isinstance(k, int) or not 1 <= k <= latents:
                raise BadInput(f"k is {k!r}; a whole number from 1 to {latents} is expected")
            return {"k": k}
        if activation == "jumprelu":
            return {"threshold": self.take("threshold", shape=(latents,))}
        if activation == "gated":
            parts = (("r_mag",), ("b_mag", "mag_bias"))
            scale, bias = (self.take(*names, shape=(latents,)) for names in parts)
            return {"magnitude": torch.stack([scale.exp(), bias])}
        if activation == "relu":
            return {}
        threshold = self.take("topk_threshold", "threshold", shape=())
        if float(threshold) < 0:  # its value before training
            raise BadInput("its threshold was never set: batchtopk needs it for single tokens")
        return {"threshold": threshold}
