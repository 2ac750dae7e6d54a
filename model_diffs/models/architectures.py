"""Which weight matrices a stored tensor holds, with their layer, group and component, by its name.

The parts of a live model are found by `anatomy.locate`. Tensors are duck-typed: no torch here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput

OUTSIDE = -1
# Where an activation of a block can be read (`sites` says what each is).
SITES = (
    *("resid_pre", "attn_z", "attn_out", "attn_out_after_norm", "resid_mid", "mlp_in"),
    *("mlp_in_before_gain", "mlp_hidden", "mlp_out", "mlp_out_after_norm", "resid_post"),
)
MLP_COMPONENTS = ("mlp_in", "mlp_gate", "mlp_out")

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
EXPERT = re.compile(r"(?:^|\.)experts(?:\.\d+)?\.")
ATTENTION = {"attention", "attn", "self_attn", "self_attention"}
MLP = {"mlp", "feed_forward", "block_sparse_moe", "fc1", "fc2"}
_ATTENTION_LEAVES = {
    **dict.fromkeys(("query_key_value", "qkv_proj", "Wqkv", "c_attn"), "qkv"),
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"),
    **dict.fromkeys(("dense", "o_proj", "out_proj", "c_proj"), "attn_out"),
}
_MLP_LEAVES = {
    **dict.fromkeys(("dense_h_to_4h", "up_proj", "fc1", "c_fc", "w3"), "mlp_in"),
    **dict.fromkeys(("gate_proj", "w1"), "mlp_gate"),
    **dict.fromkeys(("dense_4h_to_h", "down_proj", "fc2", "c_proj", "w2"), "mlp_out"),
    **dict.fromkeys(("gate", "router", "shared_expert_gate"), "router"),
    "gate_up_proj": "mlp_gate+mlp_in",
}
_OUTER_LEAVES = {
    **dict.fromkeys(("embed_in", "embed_tokens", "wte", "wpe", "embed_positions"), "embed"),
    "project_in": "embed",
    **dict.fromkeys(("embed_out", "lm_head", "project_out"), "head"),
}
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")
# Causal masks and rotary tables of older checkpoints, and the other parts of multimodal ones.
_NO_WEIGHT = re.compile(
    r"(?:^|\.)(?:attn|attention)\.(?:bias|masked_bias)$|rotary_emb\.|inv_freq$|(?:^|\.)position_ids$"
    r"|(?:^|\.)(?:vision_tower|vision_model|multi_modal_projector)\."
)
# Linear layers of these are Conv1D, stored [in, out].
STORED_IN_OUT = {"gpt2", "openai-gpt"}
# Families whose stacked experts are [experts, out, in], gate rows before up rows.
_STACKED_OUT_IN = {"mixtral", "qwen2_moe", "qwen3_moe"}
# Where the configuration does not say: these tie the head to the embedding unless told otherwise.
_TIED_BY_DEFAULT = {"gpt2", "opt", "gemma", "gemma2", "gemma3", "gemma3_text"}


class Place(NamedTuple):
    """What a parameter is."""

    layer: int
    """Index of its block, −1 outside blocks."""
    group: str
    """`attn`, `mlp` or `other`."""
    component: str
    """qkv, attn_out, mlp_in, mlp_gate, mlp_out, router, embed or head; `mlp_gate+mlp_in` for a
    fused matrix that holds both."""


@dataclass(frozen=True)
class Matrix:
    """One matrix inside a stored tensor."""

    name: str
    """Name of the tensor, with `[expert]` and `.mlp_gate`/`.mlp_in` where it holds several."""
    tensor: str
    """Name of the stored tensor."""
    layer: int
    group: str
    component: str
    shape: tuple[int, int]
    """Shape [out, in] of what `take` gives ([vocabulary, hidden] for embeddings)."""
    expert: int | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False
    """Stored as [in, out]."""

    def take(self, tensor: Any) -> Any:
        """The view [out, in] of this matrix in its stored tensor; nothing is copied."""
        if self.expert is not None:
            tensor = tensor[self.expert]
        if self.rows is not None:
            tensor = tensor[self.rows[0] : self.rows[1]]
        return tensor.T if self.transposed else tensor


def is_weight(name: str, tied: bool = False) -> bool:
    """Whether a stored tensor is a weight of the language model, not a mask or rotary table.

    `tied`: nor is the copy of the embedding that is stored as head.
    """
    return not (_NO_WEIGHT.search(name) or (tied and _HEAD.search(name)))


def describe_parameter(name: str) -> Place:
    """Layer, group and component of a weight matrix, from its name.

    Raises BadInput where the name has no known role.
    """
    layer, group, leaves = OUTSIDE, "other", _OUTER_LEAVES
    block = _BLOCK.search(name)
    if block is not None:
        layer, parts = int(block[1]), block[2].split(".")
        if ATTENTION.intersection(parts):
            group, leaves = "attn", _ATTENTION_LEAVES
        elif MLP.intersection(parts):
            group, leaves = "mlp", _MLP_LEAVES
        else:
            leaves = dict.fromkeys(sorted(ATTENTION | MLP), "")
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    if not (component := leaves.get(leaf)):
        raise BadInput(
            f"{name}: no known role for this matrix; looked for {', '.join(leaves)} "
            "(model_diffs/models/architectures.py lists the supported architectures)"
        )
    return Place(layer, group, component)


def matrices(name: str, shape: Sequence[int], model_type: str) -> list[Matrix]:
    """The weight matrices in a stored tensor: none in biases, norms and buffers, one in a matrix,
    one per expert in stacked experts, two where gate and up are fused (gate rows first, as in
    Mixtral and Phi-3).

    Raises BadInput for a matrix without a known role, and for stacked experts of a family whose
    layout is not known.
    """
    if len(shape) < 2 or not is_weight(name):
        return []
    layer, group, fused = describe_parameter(name)
    stacked = len(shape) == 3 and EXPERT.search(name) and model_type in _STACKED_OUT_IN
    if len(shape) > 2 and not stacked:
        raise BadInput(
            f"{name}: a tensor of shape {tuple(shape)} in a {model_type or 'nameless'} model; "
            f"looked for matrices, or stacked experts of {', '.join(sorted(_STACKED_OUT_IN))}"
        )
    transposed = model_type in STORED_IN_OUT and layer != OUTSIDE
    side_in, side_out = shape[-2:] if transposed else (shape[-1], shape[-2])
    components = fused.split("+")
    height = side_out // len(components)
    found = []
    for expert in range(shape[0]) if stacked else [None]:
        for i, component in enumerate(components):
            label = name if expert is None else f"{name}[{expert}]"
            rows = None
            if len(components) > 1:
                label, rows = f"{label}.{component}", (i * height, (i + 1) * height)
            place = Place(layer, group, component)
            found.append(Matrix(label, name, *place, (height, side_in), expert, rows, transposed))
    return found


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether a model of this config.json uses its embedding as head."""
    tied = config.get("tie_word_embeddings")
    return bool(tied) if tied is not None else config.get("model_type") in _TIED_BY_DEFAULT
