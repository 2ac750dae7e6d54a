"""The three formats of sparse autoencoders, read without their libraries.

    sparsify             cfg.json, sae.safetensors
    SAELens              cfg.json, sae_weights.safetensors
    dictionary_learning  config.json, ae.pt

Definitions: EleutherAI/sparsify `SparseCoder.encode`, SAELens `SAE.encode` of each architecture,
saprmarks/dictionary_learning `dictionary.py` and the trainers of its TopK classes.
"""

import json
from collections.abc import Callable, Mapping
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


def read_config(path: Path) -> dict[str, Any]:
    """A configuration. BadInput where it is missing or not a JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: missing beside its weights; copy the SAE again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid JSON: copy the SAE again") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not a JSON object: this is not an SAE")
    return config


class _Stored:
    """A configuration and tensors, asked for by name and shape."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.config = read_config(folder / CONFIG_OF[kind])
        self.tensors = load_tensors(folder / WEIGHTS_OF[kind])

    def bad(self, what: str) -> BadInput:
        return BadInput(f"{self.folder}: {what}")

    def number(self, name: str, config: Mapping[str, Any]) -> int:
        """A whole number of the configuration."""
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.bad(f"{name} is {value!r} in its configuration; a whole number is expected")
        return value

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor in fp32; None in `shape` is any size."""
        if name not in self.tensors:
            raise self.bad(f"no tensor {name}; it has {', '.join(sorted(self.tensors))}")
        tensor = self.tensors[name]
        if len(shape) != tensor.ndim or any(
            wanted not in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.bad(f"{name} is {list(tensor.shape)}, expected [{wanted}]")
        if not bool(torch.isfinite(tensor).all()):
            raise self.bad(f"{name} holds NaN or Inf")
        return tensor.float()

    def of_activation(
        self, kind: str, latents: int, config: Mapping[str, Any], batch: str, bias: str
    ) -> dict[str, Any]:
        """The fields of an Sae that its activation needs; names of tensors differ by format.

        batchtopk is read with the threshold `batch`: with the top k of a batch, a token's features
        would depend on the batch that it is in.
        """
        if kind == "topk":
            return {"k": self.number("k", config)}
        if kind == "jumprelu":
            return {"threshold": self.take("threshold", latents)}
        if kind == "gated":
            parts = [self.take("r_mag", latents).exp(), self.take(bias, latents)]
            return {"magnitude": torch.stack(parts)}
        if kind == "batchtopk" and float(self.take(batch)) < 0:  # its value before training
            raise self.bad(f"{batch} was never set: batchtopk needs it to encode tokens one by one")
        return {"threshold": self.take(batch)} if kind == "batchtopk" else {}


def read_sae(folder: Path, kind: str) -> Sae:
    """The SAE of a folder in the format `kind`.

    Raises BadInput for what is missing or damaged, for shapes that contradict each other, and for
    activations and options of a format that would change what is encoded and are not known here.
    """
    stored = _Stored(folder, kind)
    sae = _READERS[kind](stored)
    if sae.activation == "topk" and not 1 <= sae.k <= sae.d_sae:
        raise stored.bad(f"k is {sae.k}; between 1 and {sae.d_sae} features can be active")
    return sae


# ── sparsify ──────────────────────────────────────────────────────────────────────────────────────


def _sparsify(stored: _Stored) -> Sae:
    config = stored.config
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise stored.bad(f"activation {activation!r} of sparsify is not known; topk is")
    d = stored.number("d_in", config)
    latents = stored.number("num_latents", {"num_latents": 0, **config})
    latents = latents or d * stored.number("expansion_factor", config)
    transcode = bool(config.get("transcode", False))
    decoder = stored.take("W_dec", latents, None if transcode else d)
    return Sae(
        encoder=stored.take("encoder.weight", latents, d),
        encoder_bias=stored.take("encoder.bias", latents),
        decoder=decoder,
        decoder_bias=stored.take("b_dec", decoder.shape[1]),
        activation="topk",
        subtract=not transcode,
        k=stored.number("k", config),
        transcoder=transcode,
    )


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


# ── SAELens ───────────────────────────────────────────────────────────────────────────────────────


def _saelens(stored: _Stored) -> Sae:
    config = stored.config
    kind = config.get("architecture", "standard")
    if kind == "standard":
        kind = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if kind not in ("relu", "topk", "batchtopk", "jumprelu", "gated"):
        raise stored.bad(f"architecture {kind!r} of SAELens is not known")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name) not in ("none", None):
            raise stored.bad(f"{name} {config[name]!r} changes what is encoded; unknown here")
    if config.get("finetuning_scaling_factor"):
        raise stored.bad("finetuning_scaling_factor changes what is decoded; unknown here")
    d, latents = stored.number("d_in", config), stored.number("d_sae", config)
    encoder = stored.take("W_enc", d, latents).T
    bias = stored.take("b_gate" if kind == "gated" else "b_enc", latents)
    decoder = stored.take("W_dec", latents, d)
    if config.get("rescale_acts_by_decoder_norm"):
        # Features times their row's norm, rows of length 1: the same x̂, so it is done once here.
        norm = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    config_of_k = {**(config.get("activation_fn_kwargs") or {}), **config}
    found = stored.of_activation(kind, latents, config_of_k, "topk_threshold", "b_mag")
    subtract = bool(config.get("apply_b_dec_to_input", True))
    return Sae(encoder, bias, decoder, stored.take("b_dec", d), kind, subtract, **found)


# ── dictionary_learning ───────────────────────────────────────────────────────────────────────────

# Class → activation, name of b_dec, whether b_dec is subtracted first.
_CLASSES = {
    "AutoEncoder": ("relu", "bias", True),
    "AutoEncoderNew": ("relu", "decoder.bias", False),
    "GatedAutoEncoder": ("gated", "decoder_bias", True),
    "JumpReluAutoEncoder": ("jumprelu", "b_dec", False),
    "AutoEncoderTopK": ("topk", "b_dec", True),
    "BatchTopKSAE": ("batchtopk", "b_dec", True),
    "MatryoshkaBatchTopKSAE": ("batchtopk", "b_dec", True),
}


def _learning(stored: _Stored) -> Sae:
    trainer = stored.config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise stored.bad(f"dict_class {name!r} of dictionary_learning is not known")
    kind, decoder_bias, subtract = _CLASSES[name]
    d = stored.number("activation_dim", trainer)
    if "W_enc" in stored.tensors:
        encoder = stored.take("W_enc", d, None).T
        latents = encoder.shape[0]
        bias, decoder = stored.take("b_enc", latents), stored.take("W_dec", latents, d)
    else:
        encoder = stored.take("encoder.weight", None, d)
        latents = encoder.shape[0]
        bias = stored.take("gate_bias" if kind == "gated" else "encoder.bias", latents)
        # [d, L]: transposed once, since rows are gathered from it later.
        decoder = stored.take("decoder.weight", d, latents).T.contiguous()
    if trainer.get("dict_size", latents) != latents:
        raise stored.bad(
            f"dict_size is {trainer['dict_size']}, its weights have {latents} features"
        )
    stored_k = int(stored.tensors["k"]) if "k" in stored.tensors else None
    config_of_k = {"k": stored_k, **trainer}
    found = stored.of_activation(kind, latents, config_of_k, "threshold", "mag_bias")
    return Sae(encoder, bias, decoder, stored.take(decoder_bias, d), kind, subtract, **found)


_READERS: dict[str, Callable[[_Stored], Sae]] = {
    SPARSIFY: _sparsify,
    SAELENS: _saelens,
    LEARNING: _learning,
}
