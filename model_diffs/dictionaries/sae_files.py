"""The formats of sparse autoencoders, read without their libraries.

    sparsify             cfg.json, sae.safetensors
    SAELens              cfg.json, sae_weights.safetensors
    dictionary_learning  config.json, ae.pt
    GemmaScope           params.npz
    GemmaScope 2         config.json, params.safetensors
    LlamaScope           hyperparams.json, checkpoints/final.safetensors

Definitions: EleutherAI/sparsify `SparseCoder.encode`, SAELens `SAE.encode` of each architecture,
saprmarks/dictionary_learning `dictionary.py` and the trainers of its TopK classes; of the last
three in `sae_scopes`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae_scopes
from model_diffs.dictionaries.hook_points import NOWHERE, Place, place_of
from model_diffs.dictionaries.sae import Sae
from model_diffs.dictionaries.sae_tensors import Tensors, number
from model_diffs.dictionaries.tensor_files import load_tensors

Config = Mapping[str, Any]
SPARSIFY, SAELENS, LEARNING = "sparsify", "SAELens", "dictionary_learning"
GEMMA, GEMMA_2, LLAMA = "GemmaScope", "GemmaScope 2", "LlamaScope"
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
# SAELens: what each way to normalise its input is here.
_NORMALISED = {"layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_UNTOUCHED = (None, "none", False)


class Format(NamedTuple):
    """How a kind of SAE is stored."""

    weights: str
    """File of the weights, below the SAE's folder."""
    config: str
    """File of the configuration."""
    read: Callable[[Config, Tensors], Sae]
    place: Callable[[str, Config], Place]
    """Where it belongs, by its whole name (repository and folders) and its configuration."""
    needs_config: bool = True


def read_config(path: Path) -> dict[str, Any]:
    """A configuration. BadInput where it is missing or not a JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: missing or not valid JSON; copy the SAE again") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not a JSON object: this is not an SAE")
    return config


def config_of(folder: Path, kind: str) -> dict[str, Any]:
    """The configuration of an SAE's folder; empty where the format can do without."""
    form = FORMATS[kind]
    there = form.needs_config or (folder / form.config).is_file()
    return read_config(folder / form.config) if there else {}


def files_of(folder: Path, kind: str) -> list[Path]:
    """What an SAE is read from."""
    form = FORMATS[kind]
    files = (folder / name for name in (form.config, form.weights) if name)
    return [file for file in files if file.is_file()]


def read_sae(folder: Path, kind: str) -> Sae:
    """The SAE of a folder in the format `kind`.

    Raises BadInput for what is missing or damaged, for shapes that contradict each other, and for
    activations and options of a format that would change what is encoded and are not known here.
    """
    config = config_of(folder, kind)
    tensors = Tensors(load_tensors(folder / FORMATS[kind].weights))
    try:
        return FORMATS[kind].read(config, tensors)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from error


# ── sparsify ──────────────────────────────────────────────────────────────────────────────────────


def _sparsify(config: Config, tensors: Tensors) -> Sae:
    if config.get("activation", "topk") != "topk":
        raise BadInput(f"activation {config['activation']!r} of sparsify is not known; topk is")
    d, transcode = number("d_in", config), bool(config.get("transcode", False))
    latents = number("num_latents", {"num_latents": 0, **config})
    latents = latents or d * number("expansion_factor", config)
    return tensors.sae("topk", d, latents, not transcode, config.get("k"), transcode)


def _by_folder(name: str, config: Config, said: str = "") -> Place:
    """What is said, else the innermost folder name that says something."""
    places = map(place_of, (said, *reversed(name.split("/"))))
    return next((place for place in places if place.layer is not None), NOWHERE)


def _sparsify_place(name: str, config: Config) -> Place:
    place = _by_folder(name, config)
    return place._replace(entering="mlp_in") if config.get("transcode") else place


# ── SAELens ───────────────────────────────────────────────────────────────────────────────────────


def _about(config: Config) -> dict[str, Any]:
    """What a configuration says of the model, which newer ones keep under `metadata`."""
    metadata = config.get("metadata")
    return {**config, **(metadata if isinstance(metadata, dict) else {})}


def _saelens(config: Config, tensors: Tensors) -> Sae:
    kind = str(config.get("architecture", "standard"))
    transcoder = kind.endswith("transcoder")
    kind = re.sub(r"_?(skip_)?transcoder$", "", kind) or "standard"
    if kind == "standard":
        kind = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if kind not in ("relu", "topk", "batchtopk", "jumprelu", "gated"):
        raise BadInput(f"architecture {kind!r} of SAELens is not known")
    normalised, reshaped = config.get("normalize_activations"), config.get("reshape_activations")
    if normalised not in (*_UNTOUCHED, *_NORMALISED):
        raise BadInput(
            f"normalize_activations {normalised!r} changes what is encoded; unknown here"
        )
    if reshaped not in (*_UNTOUCHED, "hook_z"):
        raise BadInput(f"reshape_activations {reshaped!r} changes what is encoded; unknown here")
    if config.get("finetuning_scaling_factor"):
        raise BadInput("finetuning_scaling_factor changes what is decoded; unknown here")
    if transcoder and normalised in _NORMALISED:
        raise BadInput(f"normalize_activations {normalised!r} of a transcoder is not known here")
    head = _about(config).get("hook_head_index", _about(config).get("hook_point_head_index"))
    if head is not None:
        raise BadInput(f"it is of head {head} alone, which is not known here")
    sae = tensors.sae(
        activation=kind,
        d=number("d_in", config),
        latents=number("d_sae", config),
        subtract=bool(config.get("apply_b_dec_to_input", not transcoder)),
        k=config.get("k", (config.get("activation_fn_kwargs") or {}).get("k")),
        transcoder=transcoder,
        scaled=bool(config.get("rescale_acts_by_decoder_norm")),
    )
    return replace(sae, normalise=_NORMALISED.get(normalised or "", ""))


def _saelens_place(name: str, config: Config) -> Place:
    about = _about(config)
    read = str(about.get("hook_name") or about.get("hook_point") or "")
    stands = str(about.get("hook_name_out") or read)
    if stands == read:
        return _by_folder(name, config, read)
    return place_of(stands)._replace(entering=place_of(read).site)


def is_centred(config: Config) -> bool | None:
    """Whether an SAELens configuration says that the model's writing weights were centred; None
    where it does not say."""
    kwargs = _about(config).get("model_from_pretrained_kwargs")
    said = kwargs.get("center_writing_weights") if isinstance(kwargs, dict) else None
    return said if isinstance(said, bool) else None


# ── dictionary_learning ───────────────────────────────────────────────────────────────────────────


def _trainer(config: Config) -> dict[str, Any]:
    trainer = config.get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def _learning(config: Config, tensors: Tensors) -> Sae:
    trainer = _trainer(config)
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise BadInput(f"dict_class {name!r} of dictionary_learning is not known")
    kind, subtract = _CLASSES[name]
    k = trainer.get("k", tensors.get("k"))
    k = int(k) if isinstance(k, Tensor) else k
    width, latents = number("activation_dim", trainer), trainer.get("dict_size")
    return tensors.sae(kind, width, latents, subtract, k)


def _learning_place(name: str, config: Config) -> Place:
    trainer = _trainer(config)
    said, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
    if isinstance(layer, int) and place_of(said).layer is None:
        site = place_of(f"{said}_layer_0").site if said else _by_folder(name, config).site
        return Place(layer, site)
    return _by_folder(name, config, said)


FORMATS = {
    SPARSIFY: Format("sae.safetensors", "cfg.json", _sparsify, _sparsify_place),
    SAELENS: Format("sae_weights.safetensors", "cfg.json", _saelens, _saelens_place),
    LEARNING: Format("ae.pt", "config.json", _learning, _learning_place),
    GEMMA: Format("params.npz", "", sae_scopes.gemma, sae_scopes.gemma_place, False),
    GEMMA_2: Format(
        *("params.safetensors", "config.json", sae_scopes.gemma_2, sae_scopes.gemma_2_place, False)
    ),
    LLAMA: Format(
        *("checkpoints/final.safetensors", "hyperparams.json"),
        *(sae_scopes.llama, sae_scopes.llama_place),
    ),
}


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
    (folder / FORMATS[SPARSIFY].config).write_text(text, encoding="utf-8")
    tensors = {
        "encoder.weight": sae.encoder,
        "encoder.bias": sae.encoder_bias,
        "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias,
    }
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / FORMATS[SPARSIFY].weights)
