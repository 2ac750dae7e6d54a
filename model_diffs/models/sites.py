"""Where in a live model an activation is read: the sites of a decoder block.

    resid_pre           what enters the block
    attn_z              the heads' outputs side by side, before their last matrix
    attn_out            output of the attention
    attn_out_after_norm the same after the norm that may follow (Gemma 2, 3): what is added
    resid_mid           the residual stream between attention and MLP (not in parallel blocks)
    mlp_in              what enters the MLP, after its norm
    mlp_in_before_gain  the same without the norm's gain and bias
    mlp_hidden          input of the MLP's last matrix
    mlp_out             output of the MLP
    mlp_out_after_norm  the same after the norm that may follow (Gemma 2, 3): what is added
    resid_post          output of the block; `residual` is another name for it

Modules are found by the names of a block's children; without a norm after it, `…_after_norm` is the
output itself.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy
from model_diffs.models.architectures import ATTENTION, describe_parameter

# What is added to the residual stream, or is it.
WRITTEN = ("resid_pre", "attn_out", "attn_out_after_norm", "resid_mid", "mlp_out",
           "mlp_out_after_norm", "resid_post")  # fmt: skip
_ENTERING = ("resid_pre", "attn_z", "resid_mid", "mlp_in", "mlp_in_before_gain", "mlp_hidden")
# Blocks with a norm after the MLP have one of this name, and one after the attention.
AFTER_MLP, AFTER_ATTENTION = "post_feedforward_layernorm", "post_attention_layernorm"
_NORM_BIAS = re.compile(r"(?:norm|ln_?\d|ln_f)\.bias$")
_BEFORE_MLP = ("pre_feedforward_layernorm", AFTER_ATTENTION, "ln_2", "final_layer_norm")

Receive = Callable[[int, Tensor], Tensor]
"""Gets layer and activation as the model has it, gives the activation to go on with."""


def canonical(site: str) -> str:
    """The one name of a site that has two."""
    return "resid_post" if site == "residual" else site


def of_model(site: str, parameters: Iterable[str]) -> str:
    """The site, without `_after_norm` where a model with these parameters has no such norm."""
    if any(f".{AFTER_MLP}." in name for name in parameters):
        return canonical(site)
    return canonical(site).removesuffix("_after_norm")


def has_layer_norms(parameters: Iterable[str]) -> bool:
    """Whether norms take the mean off (LayerNorm): those have a bias, RMSNorms have none."""
    return any(_NORM_BIAS.search(name) for name in parameters)


def _attention(block: Any, layer: int, whole: bool) -> Any:
    """The attention module, or its last matrix."""
    for inner, parameter in block.named_parameters():
        root = inner.split(".")[0]
        if root in ATTENTION and whole:
            return getattr(block, root)
        matrix = root in ATTENTION and parameter.ndim >= 2
        if matrix and describe_parameter(f"layers.0.{inner}").component == "attn_out":
            return block.get_submodule(inner.rpartition(".")[0])
    raise BadInput(f"layer {layer}: no attention found; looked for {', '.join(sorted(ATTENTION))}")


def _norm_before_mlp(block: Any, layer: int, site: str) -> Any:
    """The norm whose output enters the MLP."""
    after = AFTER_MLP in dict(block.named_children())
    names = [name for name in _BEFORE_MLP if not (after and name == AFTER_ATTENTION)]
    found = next((getattr(block, name) for name in names if hasattr(block, name)), None)
    parallel = getattr(block, "use_parallel_residual", False) and site == "resid_mid"
    if found is None or parallel:
        raise BadInput(
            f"layer {layer} has no {site}: its MLP and its attention read the same states; use "
            "another site"
        )
    return found


def _module(anatomy: Anatomy, site: str, layer: int) -> Any:
    """The module whose input (of the sites `_ENTERING`) or output is the site."""
    block, mlp = anatomy.blocks[layer], anatomy.mlps[layer]
    if site in ("resid_pre", "resid_post"):
        return block
    if site in ("resid_mid", "mlp_in_before_gain"):
        return _norm_before_mlp(block, layer, site)
    if site in ("attn_z", "attn_out"):
        return _attention(block, layer, whole=site == "attn_out")
    if site == "attn_out_after_norm":
        has = hasattr(block, AFTER_MLP)
        return getattr(block, AFTER_ATTENTION) if has else _attention(block, layer, whole=True)
    if site == "mlp_out_after_norm":
        return getattr(block, AFTER_MLP, mlp.output_module)
    if site == "mlp_hidden":
        if "mlp_out" not in mlp.matrices:
            raise BadInput(
                f"layer {layer} has no single hidden MLP activation (a mixture of experts has one "
                "per expert): use --site mlp_out or residual"
            )
        return mlp.matrices["mlp_out"]
    return mlp.input_module if site == "mlp_in" else mlp.output_module


def _entering(receive: Callable[[Tensor], Tensor], _: Any, args: Any, kwargs: Any) -> Any:
    if args:
        return (receive(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": receive(kwargs["hidden_states"])}


def _leaving(receive: Callable[[Tensor], Tensor], _: Any, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (receive(output[0]), *output[1:])
    return receive(output)


def without_gain(norm: Any, x: Tensor) -> Tensor:
    """What a LayerNorm or RMSNorm makes of x before its gain and bias, in fp32."""
    wide = x.float()
    if isinstance(norm, nn.LayerNorm):
        return nn.functional.layer_norm(wide, wide.shape[-1:], eps=norm.eps)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


def _with_graph(x: Tensor) -> Tensor:
    """x, from here on part of a graph where gradients are taken."""
    return x.detach().requires_grad_() if torch.is_grad_enabled() and not x.requires_grad else x


@contextmanager
def watch(anatomy: Anatomy, site: str, layers: Sequence[int], receive: Receive) -> Iterator[None]:
    """Hand the activation of each layer to `receive` as it is made; the hooks end with the block.

    What `receive` gives for `mlp_in_before_gain` is not used, since no module has that as its
    input. Raises BadInput for a site that a block does not have.
    """
    site = canonical(site)
    with loading.hooks() as handles:
        for layer in layers:
            module, of_layer = _module(anatomy, site, layer), partial(receive, layer)
            if site == "resid_mid":
                # The stream also passes by the norm: a graph that began here would miss that.
                hook: Any = partial(_entering, _with_graph)
                block = anatomy.blocks[layer]
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            if site == "mlp_in_before_gain":

                def look(norm: Any, args: Any, to: Callable[[Tensor], Tensor] = of_layer) -> None:
                    to(without_gain(norm, args[0]))

                handles.append(module.register_forward_pre_hook(look))
            elif site in _ENTERING:
                hook = partial(_entering, of_layer)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(partial(_leaving, of_layer)))
        yield


def counted_rows(activation: Tensor, counted: Tensor) -> Tensor:
    """`[n, d]` from `[B, positions, d]` or, as OPT has it, `[B · positions, d]`."""
    counted = counted.to(activation.device)
    return activation.reshape(*counted.shape, -1)[counted]
