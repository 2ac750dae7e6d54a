"""The parts of a live decoder-only model: trunk, blocks, MLPs, embedding, final norm, head.

Found by structure: blocks by their number, what is inside them by the roles of their parameters'
names. Modules are only ever duck-typed, so nothing heavy is imported.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.models.architectures import (
    ATTENTION,
    EXPERT,
    MLP,
    STORED_IN_OUT,
    Place,
    describe_parameter,
)


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
    conv1d = text_config.model_type in STORED_IN_OUT
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
            f"{name}: {len(roots)} attention modules; looked for one of {sorted(ATTENTION)}"
        )
    return getattr(block, roots.pop())


def _mlp(block: Any, name: str, layer: int, conv1d: bool) -> Mlp:
    inside = [(inner, place) for inner, place in _block_places(block, name) if place.group == "mlp"]
    roots = {inner.split(".")[0] for inner, _ in inside}
    experts = any(EXPERT.search(inner) for inner, _ in inside)
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
    raise BadInput(f"{name}: no MLP found; looked for one of {sorted(MLP)}")
