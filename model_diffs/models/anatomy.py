"""The parts of a live decoder-only model: trunk, blocks, MLPs, embedding, final norm, head.

Found by structure: blocks by their number, what is inside them by the names of their parameters.
Modules are duck-typed: no torch here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.models.architectures import EXPERT, MLP, describe_parameter


class Mlp(NamedTuple):
    """The feed-forward part of one block."""

    layer: int
    input_module: Any
    """Its input [batch, tokens, hidden] is what every mlp_in and mlp_gate matrix sees, all experts'
    included."""
    output_module: Any
    """Its output is what the MLP adds to the residual stream (before a norm that may follow)."""
    matrices: Mapping[str, Any]
    """Linear module of each matrix by component (mlp_in, mlp_gate, mlp_out, or mlp_gate+mlp_in
    where fused): its input is what the matrix multiplies. Empty for mixtures of experts."""


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
    mlps: tuple[Mlp, ...]


def locate(model: Any) -> Anatomy:
    """Find the parts of a causal language model of transformers.

    The blocks are the ModuleList with `config.num_hidden_layers` entries inside the trunk.
    Raises BadInput, naming what was looked for, where a part is missing.
    """
    trunk = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    count, kind = int(model.config.get_text_config().num_hidden_layers), type(model).__name__
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise BadInput(f"{kind} has no input or no output embedding; not a supported model")
    blocks, holder = _blocks(trunk, count, kind)
    # The norm that is a sibling of the blocks; the last one where there are several.
    siblings = holder.named_children()
    norms = [child for name, child in siblings if "norm" in name.lower() or name == "ln_f"]
    names = {id(module): name for name, module in model.named_modules()}
    return Anatomy(
        trunk=trunk,
        blocks=blocks,
        embedding=embedding,
        final_norm=norms[-1] if norms else None,
        head=head,
        mlps=tuple(_mlp(block, names[id(block)], i) for i, block in enumerate(blocks)),
    )


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


def _mlp(block: Any, name: str, layer: int) -> Mlp:
    places = {
        inner: describe_parameter(f"{name}.{inner}")
        for inner, parameter in block.named_parameters()
        if parameter.ndim >= 2
    }
    inside = {inner: place.component for inner, place in places.items() if place.group == "mlp"}
    matrices = {}
    if not any(EXPERT.search(inner) for inner in inside):
        for inner, component in inside.items():
            matrices[component] = block.get_submodule(inner.rpartition(".")[0])
    roots = {inner.split(".")[0] for inner in inside}
    if len(roots) == 1:
        module = getattr(block, roots.pop())
        return Mlp(layer, module, module, matrices)
    if {"mlp_in", "mlp_out"} <= set(matrices):  # OPT: fc1 and fc2 lie in the block itself
        return Mlp(layer, matrices["mlp_in"], matrices["mlp_out"], matrices)
    raise BadInput(f"{name}: no MLP found; looked for one of {sorted(MLP)}")
