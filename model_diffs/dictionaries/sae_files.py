"""The three formats of sparse autoencoders, read without their libraries.

    sparsify             cfg.json, sae.safetensors
    SAELens              cfg.json, sae_weights.safetensors
    dictionary_learning  config.json, ae.pt

Definitions: EleutherAI/sparsify `SparseCoder.encode`, SAELens `SAE.encode` of each architecture,
saprmarks/dictionary_learning `dictionary.py` and the trainers of its TopK classes.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Sae

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
        self.tensors = _load(folder / WEIGHTS_OF[kind])

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
        fits = len(shape) == tensor.ndim and all(
            wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.bad(f"{name} is {list(tensor.shape)}, expected [{wanted}]")
        if not bool(torch.isfinite(tensor).all()):
            raise self.bad(f"{name} holds NaN or Inf")
        return tensor.float()


def _load(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".pt":
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            tensors = load_file(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; copy the SAE again") from error
    except pickle.UnpicklingError as error:
        raise BadInput(f"{path} holds more than tensors, and code in it is not run") from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise BadInput(f"{path} is corrupt: copy the SAE again") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise BadInput(f"{path} is not a dictionary of tensors")
    return tensors


def read_sae(folder: Path, kind: str) -> Sae:
    """The SAE of a folder in the format `kind`.

    Raises BadInput for what is missing or corrupt, for shapes that contradict each other, and for
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
    if not latents:
        latents = d * stored.number("expansion_factor", config)
    transcode = bool(config.get("transcode", False))
    out = stored.tensors["b_dec"].shape[-1] if transcode and "b_dec" in stored.tensors else d
    return Sae(
        stored.take("encoder.weight", latents, d),
        stored.take("encoder.bias", latents),
        stored.take("W_dec", latents, out),
        stored.take("b_dec", out),
        "topk",
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

_REFUSED = {"normalize_activations": "none", "reshape_activations": "none"}


def _saelens(stored: _Stored) -> Sae:
    config = stored.config
    kind = config.get("architecture", "standard")
    if kind == "standard":
        kind = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if kind not in ("relu", "topk", "batchtopk", "jumprelu", "gated"):
        raise stored.bad(f"architecture {kind!r} of SAELens is not known")
    for name, plain in _REFUSED.items():
        if config.get(name, plain) not in (plain, None):
            raise stored.bad(
                f"{name} is {config[name]!r}: it changes what is encoded, unknown here"
            )
    if config.get("finetuning_scaling_factor"):
        raise stored.bad("finetuning_scaling_factor: it changes what is decoded, unknown here")
    d, latents = stored.number("d_in", config), stored.number("d_sae", config)
    encoder = stored.take("W_enc", d, latents).T
    bias = stored.take("b_gate" if kind == "gated" else "b_enc", latents)
    decoder = stored.take("W_dec", latents, d)
    if config.get("rescale_acts_by_decoder_norm"):
        # Features times their row's norm, rows of length 1: the same x̂, so it is done once here.
        norm = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    found: dict[str, Any] = {}
    if kind == "topk":
        found["k"] = stored.number("k", {**(config.get("activation_fn_kwargs") or {}), **config})
    elif kind == "jumprelu":
        found["threshold"] = stored.take("threshold", latents)
    elif kind == "batchtopk":
        found["threshold"] = _batch_threshold(stored, "topk_threshold")
    elif kind == "gated":
        found["magnitude"] = stored.take("r_mag", latents).exp(), stored.take("b_mag", latents)
    subtract = bool(config.get("apply_b_dec_to_input", True))
    return Sae(encoder, bias, decoder, stored.take("b_dec", d), kind, subtract, **found)


def _batch_threshold(stored: _Stored, name: str) -> Tensor:
    """The threshold that stands for the top k of a batch: without it, a token's features would
    depend on the batch that it is in."""
    threshold = stored.take(name)
    if float(threshold) < 0:  # as it is made, before any training
        raise stored.bad(f"{name} was never set: batchtopk needs it to encode tokens one by one")
    return threshold


# ── dictionary_learning ───────────────────────────────────────────────────────────────────────────

# Class → activation, name of b_dec, whether b_dec is taken off first.
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
    if not isinstance(trainer, dict) or trainer.get("dict_class") not in _CLASSES:
        named = trainer.get("dict_class") if isinstance(trainer, dict) else None
        raise stored.bad(f"dict_class {named!r} of dictionary_learning is not known")
    kind, decoder_bias, subtract = _CLASSES[trainer["dict_class"]]
    d = stored.number("activation_dim", trainer)
    if "W_enc" in stored.tensors:
        encoder = stored.take("W_enc", d, None).T
        latents = encoder.shape[0]
        bias, decoder = stored.take("b_enc", latents), stored.take("W_dec", latents, d)
    else:
        encoder = stored.take("encoder.weight", None, d)
        latents = encoder.shape[0]
        bias = stored.take("gate_bias" if kind == "gated" else "encoder.bias", latents)
        # [d, L]: rows are gathered from it later, so it is turned once.
        decoder = stored.take("decoder.weight", d, latents).T.contiguous()
    if trainer.get("dict_size", latents) != latents:
        raise stored.bad(
            f"dict_size is {trainer['dict_size']}, its weights have {latents} features"
        )
    found: dict[str, Any] = {}
    if kind == "topk":
        stored_k = stored.tensors.get("k")
        found["k"] = stored.number("k", trainer if "k" in trainer else {"k": _whole(stored_k)})
    elif kind == "jumprelu":
        found["threshold"] = stored.take("threshold", latents)
    elif kind == "batchtopk":
        found["threshold"] = _batch_threshold(stored, "threshold")
    elif kind == "gated":
        found["magnitude"] = stored.take("r_mag", latents).exp(), stored.take("mag_bias", latents)
    return Sae(encoder, bias, decoder, stored.take(decoder_bias, d), kind, subtract, **found)


def _whole(tensor: Tensor | None) -> int | None:
    return None if tensor is None else int(tensor)


_READERS: dict[str, Callable[[_Stored], Sae]] = {
    SPARSIFY: _sparsify,
    SAELENS: _saelens,
    LEARNING: _learning,
}
