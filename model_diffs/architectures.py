"""What each part of a decoder-only language model is: found by structure and names, not by count.

Two views of the same anatomy. `matrices` reads a stored tensor: the matrices it holds, their layer,
group and component. `locate` reads a live model: trunk, blocks, MLPs, embedding, head. Nothing
heavy is imported; tensors and modules are only ever duck-typed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from model_diffs.errors import BadInput

OUTSIDE = -1
COMPONENTS = (
    "qkv", "attn_out", "mlp_in", "mlp_gate", "mlp_out", "router", "embed", "head"
)  # fmt: skip
GROUPS = ("attn", "mlp", "other")

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"(?:^|\.)experts(?:\.\d+)?\.")
_ATTENTION = {"attention", "attn", "self_attn", "self_attention"}
_MLP = {"mlp", "feed_forward", "block_sparse_moe", "fc1", "fc2"}
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
_STORED_IN_OUT = {"gpt2", "openai-gpt"}
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
    if _ATTENTION.intersection(parts):
        group, leaves = "attn", _ATTENTION_LEAVES
    elif _MLP.intersection(parts):
        group, leaves = "mlp", _MLP_LEAVES
    else:
        raise _unknown(name, sorted(_ATTENTION | _MLP))
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
        "(model_diffs/architectures.py lists the supported architectures)"
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
        transposed = model_type in _STORED_IN_OUT and place.layer != OUTSIDE
        return _split_rows(
            Matrix(name, name, *place, _pair(shape, transposed), None, None, transposed)
        )
    if len(shape) == 3 and _EXPERT.search(name) and model_type in _STACKED_OUT_IN:
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


# ── live models ───────────────────────────────────────────────────────────────────────────────────


class MlpMatrix(NamedTuple):
    """A live MLP matrix: the input of `module` is what the matrix sees."""

    name: str
    """Name of its weight, as in the model's `named_parameters()`."""
    component: str
    """mlp_in, mlp_gate or mlp_out."""
    module: Any
    transposed: bool
    """Its weight is stored [in, out]."""


@dataclass(frozen=True)
class Mlp:
    """The feed-forward part of one block."""

    layer: int
    input_module: Any
    """Its input [batch, tokens, hidden] is what every mlp_in and mlp_gate matrix sees, all experts'
    included."""
    output_module: Any
    """Its output is what the MLP adds to the residual stream (before a norm that may follow)."""
    matrices: tuple[MlpMatrix, ...]
    """Linear modules, empty for mixtures of experts."""
    experts: bool
    """A mixture of experts."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a live decoder-only model."""

    trunk: Any
    """Everything below the head: called as the model is, it gives the last hidden states."""
    blocks: Any
    """The decoder blocks, in order (each may return a tensor or a tuple)."""
    embedding: Any
    final_norm: Any | None
    """Norm after the last block; None where the architecture has none."""
    head: Any
    attentions: tuple[Any, ...]
    """Attention module of each block; its output is a tensor or a tuple that starts with one."""
    mlps: tuple[Mlp, ...]


def locate(model: Any) -> Anatomy:
    """Find the parts of a causal language model of transformers.

    The blocks are the ModuleList with `config.num_hidden_layers` entries inside the trunk.
    Raises BadInput, naming what was looked for, where a part is missing.
    """
    trunk = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    text_config = model.config.get_text_config()
    blocks, holder = _blocks(trunk, int(text_config.num_hidden_layers), type(model).__name__)
    names = {id(module): name for name, module in model.named_modules()}
    conv1d = text_config.model_type in _STORED_IN_OUT
    return Anatomy(
        trunk=trunk,
        blocks=blocks,
        embedding=_required(model.get_input_embeddings(), "get_input_embeddings()", model),
        final_norm=_final_norm(holder),
        head=_required(model.get_output_embeddings(), "get_output_embeddings()", model),
        attentions=tuple(_attention(block, names[id(block)]) for block in blocks),
        mlps=tuple(_mlp(block, names[id(block)], i, conv1d) for i, block in enumerate(blocks)),
    )


def _required(part: Any, source: str, model: Any) -> Any:
    if part is None:
        raise BadInput(f"{type(model).__name__}: {source} gives nothing; not a supported model")
    return part


def _blocks(trunk: Any, count: int, model_name: str) -> tuple[Any, Any]:
    """The list of blocks and the module that holds it."""
    for _, holder in trunk.named_modules():
        for child in holder.children():
            if type(child).__name__ == "ModuleList" and len(child) == count:
                return child, holder
    raise BadInput(
        f"{model_name}: no decoder blocks found; looked for a ModuleList with "
        f"config.num_hidden_layers = {count} entries"
    )


def _final_norm(holder: Any) -> Any | None:
    """The norm that is a sibling of the blocks; the last one where there are several."""
    norms = [
        child
        for name, child in holder.named_children()
        if ("norm" in name.lower() or name == "ln_f") and child is not None
    ]
    return norms[-1] if norms else None


def _block_places(block: Any, name: str) -> list[tuple[str, Place]]:
    """Name inside the block and place of each matrix of a live block."""
    return [
        (inner, describe_parameter(f"{name}.{inner}"))
        for inner, parameter in block.named_parameters()
        if parameter.ndim >= 2
    ]


def _attention(block: Any, name: str) -> Any:
    roots = {
        inner.split(".")[0] for inner, place in _block_places(block, name) if place.group == "attn"
    }
    if len(roots) != 1:
        raise BadInput(
            f"{name}: {len(roots)} attention modules; looked for one of {sorted(_ATTENTION)}"
        )
    return getattr(block, roots.pop())


def _mlp(block: Any, name: str, layer: int, conv1d: bool) -> Mlp:
    inside = [(inner, place) for inner, place in _block_places(block, name) if place.group == "mlp"]
    roots = {inner.split(".")[0] for inner, _ in inside}
    experts = any(_EXPERT.search(inner) for inner, _ in inside)
    matrices_ = tuple(
        MlpMatrix(
            f"{name}.{inner}",
            place.component,
            block.get_submodule(inner.rpartition(".")[0]),
            conv1d,
        )
        for inner, place in inside
        if not experts
    )
    by_component = {matrix.component: matrix.module for matrix in matrices_}
    if len(roots) == 1:
        module = getattr(block, roots.pop())
        return Mlp(layer, module, module, matrices_, experts)
    if {"mlp_in", "mlp_out"} <= set(by_component):  # OPT: fc1 and fc2 lie in the block itself
        return Mlp(layer, by_component["mlp_in"], by_component["mlp_out"], matrices_, experts)
    raise BadInput(f"{name}: no MLP found; looked for one of {sorted(_MLP)}")
