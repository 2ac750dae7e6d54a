"""The suites of SAEs of whole models: GemmaScope (Gemma 2 and 3) and LlamaScope (Llama 3.1).

GemmaScope (Lieberum et al. 2024): JumpReLU, no configuration; the repository says the site, the
folder layer, width and mean L0. Outputs of MLPs are those after the norm that follows; attention is
read before its last matrix; transcoders read what enters the MLP before the norm's gain.
LlamaScope (He et al. 2024): activations are scaled to a mean norm of √d first, which is folded into
the weights here; the threshold is compared with the unscaled pre-activation times the norm of the
feature's decoder row.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.hook_points import NOWHERE, OTHER, Place, hook_point
from model_diffs.dictionaries.sae import Sae
from model_diffs.dictionaries.sae_tensors import Tensors, number

_GEMMA = re.compile(r"(?:^|[/_-])layer_(\d+)(?!\d)")
# In the name of a GemmaScope repository, and of a folder in one of GemmaScope 2.
_SITES = (
    (re.compile(r"transcoder|clt"), "mlp_out_after_norm"),
    (re.compile(r"pt-att|it-att|attn_out"), "attn_z"),
    (re.compile(r"pt-mlp|it-mlp|mlp_out"), "mlp_out_after_norm"),
    (re.compile(r"pt-res|it-res|resid_post"), "resid_post"),
)


def _jumprelu(tensors: Mapping[str, Tensor], transcoder: bool) -> Sae:
    named = {("W_" + n[2:] if n.startswith("w_") else n): one for n, one in tensors.items()}
    found = Tensors(named)
    scale = found.get("scaling_factor")
    if scale is not None and not bool((scale == 1).all()):
        raise BadInput("scaling_factor changes what is decoded; unknown here")
    d = found.take("W_enc", shape=(None, None)).shape[0]
    return found.sae("jumprelu", d, None, subtract=False, k=None, transcoder=transcoder)


def _gemma_place(name: str, entering: str) -> Place:
    layer = _GEMMA.search(name)
    site = next((site for pattern, site in _SITES if pattern.search(name)), None)
    if "embedding" in name:
        return Place(None, OTHER)
    if layer is None:
        return NOWHERE
    return Place(int(layer[1]), site, entering if re.search("transcoder|clt", name) else None)


def gemma(config: Mapping[str, Any], tensors: Tensors) -> Sae:
    """GemmaScope of Gemma 2. Transcoders have the same tensors."""
    return _jumprelu(tensors, transcoder=False)


def gemma_place(name: str, config: Mapping[str, Any]) -> Place:
    """By `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`."""
    return _gemma_place(name, "mlp_in_before_gain")


def gemma_2(config: Mapping[str, Any], tensors: Tensors) -> Sae:
    """GemmaScope 2 of Gemma 3. A transcoder's affine part counts as error."""
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise BadInput(f"architecture {config['architecture']!r} of GemmaScope 2 is not known")
    return _jumprelu(tensors, transcoder=bool(config.get("hf_hook_point_out")))


def gemma_2_place(name: str, config: Mapping[str, Any]) -> Place:
    """By `gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_medium`."""
    if "/clt" in name:
        return Place(None, OTHER)  # one encoder, a decoder for every later layer
    return _gemma_place(name, "mlp_in")


def llama(config: Mapping[str, Any], tensors: Tensors) -> Sae:
    """LlamaScope, with the scale of its activations folded into the weights."""
    kind, d = config.get("act_fn"), number("d_model", config)
    norms, limit = config.get("dataset_average_activation_norm"), config.get("jump_relu_threshold")
    if not isinstance(limit, int | float) or (kind != "jumprelu" and not limit):
        raise BadInput(f"act_fn {kind!r} without a jump_relu_threshold is not known here")
    if config.get("norm_activation") != "dataset-wise" or not isinstance(norms, dict):
        raise BadInput(
            f"norm_activation {config.get('norm_activation')!r} changes what is encoded; unknown "
            "here"
        )
    if config.get("use_glu_encoder"):
        raise BadInput("use_glu_encoder changes what is encoded; unknown here")
    read, write = (d**0.5 / float(norms[side]) for side in ("in", "out"))
    transcoder = config.get("hook_point_in") != config.get("hook_point_out")
    scaled = Tensors(tensors)
    scaled["encoder.weight"] = tensors.take("encoder.weight", shape=(None, d)) * read
    scaled["decoder.weight"] = tensors.take("decoder.weight", shape=(None, None)) / write
    scaled["decoder.bias"] = tensors.take("decoder.bias", shape=(None,)) / write
    threshold = torch.full((len(scaled["encoder.weight"]),), float(limit)) * read
    if config.get("sparsity_include_decoder_norm"):
        # Of the decoder as it stands for unscaled activations and features.
        threshold = threshold / (scaled["decoder.weight"].norm(dim=0) * read)
    scaled["threshold"] = threshold
    subtract = bool(config.get("apply_decoder_bias_to_pre_encoder"))
    return scaled.sae("jumprelu", d, number("d_sae", config), subtract, None, transcoder)


def llama_place(name: str, config: Mapping[str, Any]) -> Place:
    """By its hook points."""
    read, stands = (str(config.get(f"hook_point_{side}") or "") for side in ("in", "out"))
    place = hook_point(stands)
    return place if read == stands else place._replace(entering=hook_point(read).site)
