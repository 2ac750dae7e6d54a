"""What each part of a decoder-only language model is: found by structure and names, not by count.

`matrices` reads a stored tensor: the matrices it holds, their layer, group and component. The
parts of a live model are found by `anatomy.locate`. Nothing heavy is imported; tensors are only
ever duck-typed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput

OUTSIDE = -1
COMPONENTS = (
    "qkv", "attn_out", "mlp_in", "mlp_gate", "mlp_out", "router", "embed", "head"
)  # fmt: skip
GROUPS = ("attn", "mlp", "other")

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
# Causal masks and rotary tables that older checkpoints store beside the weights.
_BUFFER = re.compile(r"(?:attn|attention)\.(?:bias|masked_bias)$|rotary_emb\.|inv_freq$")
# Parts of multimodal checkpoints that are not the language model.
_OTHER_MODALITY = re.compile(r"(?:^|\.)(?:vision_tower|vision_model|multi_modal_projector)\.")
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
    """One of COMPONENTS; `mlp_gate+mlp_in` for a fused matrix that holds both."""


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


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is a mask or rotary table that older checkpoints carry along."""
    return _BUFFER.search(name) is not None


def is_language_model(name: str) -> bool:
    """Whether a stored tensor belongs to the language model of a possibly multimodal checkpoint."""
    return _OTHER_MODALITY.search(name) is None


def describe_parameter(name: str) -> Place:
    """Layer, group and component of a weight matrix, from its name.

    Raises BadInput where the name has no known role.
    """
    block = _BLOCK.search(name)
    if block is None:
        component = _OUTER_LEAVES.get(_leaf(name))
        if component is None:
            raise _unknown(name, _OUTER_LEAVES)
        return Place(OUTSIDE, "other", component)
    layer, parts = int(block[1]), block[2].split(".")
    if ATTENTION.intersection(parts):
        group, leaves = "attn", _ATTENTION_LEAVES
    elif MLP.intersection(parts):
        group, leaves = "mlp", _MLP_LEAVES
    else:
        raise _unknown(name, sorted(ATTENTION | MLP))
    component = leaves.get(_leaf(name))
    if component is None:
        raise _unknown(name, leaves)
    return Place(layer, group, component)


def _leaf(name: str) -> str:
    """Last part of a parameter's name that is not `weight`."""
    parts = name.split(".")
    return parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]


def _unknown(name: str, known: Any) -> BadInput:
    return BadInput(
        f"{name}: no known role for this matrix; looked for {', '.join(known)} "
        "(model_diffs/models/architectures.py lists the supported architectures)"
    )


def matrices(name: str, shape: Sequence[int], model_type: str) -> list[Matrix]:
    """The weight matrices in a stored tensor: none in biases, norms and buffers, one in a matrix,
    one per expert (two where gate and up are fused) in stacked experts.

    Raises BadInput for a matrix without a known role, and for stacked experts of a family whose
    layout is not known.
    """
    if len(shape) < 2 or is_buffer(name) or not is_language_model(name):
        return []
    place = describe_parameter(name)
    if len(shape) == 2:
        transposed = model_type in STORED_IN_OUT and place.layer != OUTSIDE
        return _split_rows(
            Matrix(name, name, *place, _pair(shape, transposed), None, None, transposed)
        )
    if len(shape) == 3 and EXPERT.search(name) and model_type in _STACKED_OUT_IN:
        return [
            part
            for expert in range(shape[0])
            for part in _split_rows(
                Matrix(f"{name}[{expert}]", name, *place, _pair(shape[1:], False), expert)
            )
        ]
    raise BadInput(
        f"{name}: a tensor of shape {tuple(shape)} in a {model_type or 'nameless'} model; "
        f"looked for matrices, or stacked experts of {', '.join(sorted(_STACKED_OUT_IN))}"
    )


def _pair(shape: Sequence[int], transposed: bool) -> tuple[int, int]:
    first, second = int(shape[0]), int(shape[1])
    return (second, first) if transposed else (first, second)


def _split_rows(matrix: Matrix) -> list[Matrix]:
    """A fused gate and up matrix as two: the gate's rows come first (Mixtral, Phi-3)."""
    components = matrix.component.split("+")
    if len(components) == 1:
        return [matrix]
    half = matrix.shape[0] // 2
    return [
        Matrix(
            f"{matrix.name}.{component}",
            matrix.tensor,
            matrix.layer,
            matrix.group,
            component,
            (half, matrix.shape[1]),
            matrix.expert,
            (i * half, (i + 1) * half),
        )
        for i, component in enumerate(components)
    ]


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether a model of this config.json uses its embedding as head."""
    tied = config.get("tie_word_embeddings")
    return bool(tied) if tied is not None else config.get("model_type") in _TIED_BY_DEFAULT
