"""The three formats of sparse autoencoders, read without their libraries.

    sparsify             cfg.json, sae.safetensors
    SAELens              cfg.json, sae_weights.safetensors
    dictionary_learning  config.json, ae.pt

Definitions: EleutherAI/sparsify `SparseCoder.encode`, SAELens `SAE.encode` of each architecture,
saprmarks/dictionary_learning `dictionary.py` and the trainers of its TopK classes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Sae
from model_diffs.dictionaries.tensor_files import load_tensors

SPARSIFY, SAELENS, LEARNING = "sparsify", "SAELens", "dictionary_learning"
WEIGHTS = {"sae.safetensors": SPARSIFY, "sae_weights.safetensors": SAELENS, "ae.pt": LEARNING}
WEIGHTS_OF = {kind: name for name, kind in WEIGHTS.items()}
CONFIG_OF = {SPARSIFY: "cfg.json", SAELENS: "cfg.json", LEARNING: "config.json"}
# dictionary_learning: class → activation, whether b_dec is subtracted first.
_CLASSES = {
    "AutoEncoder": ("relu", True),
    "AutoEncoderNew": ("relu", False),
    "GatedAutoEncoder": ("gated", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
    "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("batchtopk", True),
    "MatryoshkaBatchTopKSAE": ("batchtopk", True),
}


def read_config(path: Path) -> dict[str, Any]:
    """A configuration. BadInput where it is missing or not a JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: missing or not valid JSON; copy the SAE again") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not a JSON object: this is not an SAE")
    return config


def read_sae(folder: Path, kind: str) -> Sae:
    """The SAE of a folder in the format `kind`.

    Raises BadInput for what is missing or damaged, for shapes that contradict each other, and for
    activations and options of a format that would change what is encoded and are not known here.
    """
    config = read_config(folder / CONFIG_OF[kind])
    tensors = _Tensors(load_tensors(folder / WEIGHTS_OF[kind]))
    try:
        return {SPARSIFY: _sparsify, SAELENS: _saelens, LEARNING: _learning}[kind](config, tensors)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from error


def _number(name: str, config: Mapping[str, Any]) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInput(f"{name} is {value!r} in its configuration; a whole number is expected")
    return value


class _Tensors(dict[str, Tensor]):
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


def _sparsify(config: Mapping[str, Any], tensors: _Tensors) -> Sae:
    if config.get("activation", "topk") != "topk":
        raise BadInput(f"activation {config['activation']!r} of sparsify is not known; topk is")
    d, transcode = _number("d_in", config), bool(config.get("transcode", False))
    latents = _number("num_latents", {"num_latents": 0, **config})
    latents = latents or d * _number("expansion_factor", config)
    return tensors.sae("topk", d, latents, not transcode, config.get("k"), transcode)


def _saelens(config: Mapping[str, Any], tensors: _Tensors) -> Sae:
    kind = config.get("architecture", "standard")
    if kind == "standard":
        kind = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if kind not in ("relu", "topk", "batchtopk", "jumprelu", "gated"):
        raise BadInput(f"architecture {kind!r} of SAELens is not known")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name) not in ("none", None):
            raise BadInput(f"{name} {config[name]!r} changes what is encoded; unknown here")
    if config.get("finetuning_scaling_factor"):
        raise BadInput("finetuning_scaling_factor changes what is decoded; unknown here")
    return tensors.sae(
        activation=kind,
        d=_number("d_in", config),
        latents=_number("d_sae", config),
        subtract=bool(config.get("apply_b_dec_to_input", True)),
        k=config.get("k", (config.get("activation_fn_kwargs") or {}).get("k")),
        scaled=bool(config.get("rescale_acts_by_decoder_norm")),
    )


def _learning(config: Mapping[str, Any], tensors: _Tensors) -> Sae:
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise BadInput(f"dict_class {name!r} of dictionary_learning is not known")
    kind, subtract = _CLASSES[name]
    k = trainer.get("k", tensors.get("k"))
    k = int(k) if isinstance(k, Tensor) else k
    width, latents = _number("activation_dim", trainer), trainer.get("dict_size")
    return tensors.sae(kind, width, latents, subtract, k)


def write_sparsify(folder: Path, sae: Sae, expansion_factor: int) -> None:
    """Write a TopK SAE as sparsify does."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "activation": "topk",
        "expansion_factor": expansion_factor,
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_in,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG_OF[SPARSIFY]).write_text(text, encoding="utf-8")
    tensors = {
        "encoder.weight": sae.encoder,
        "encoder.bias": sae.encoder_bias,
        "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias,
    }
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / WEIGHTS_OF[SPARSIFY])
