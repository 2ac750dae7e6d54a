"""Where in a live model an importance is measured, and the slope of the loss at its logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy

_ENTRIES = 1 << 22  # logits whose softmax is formed at a time: 16 MiB in fp32


def _module(anatomy: Anatomy, site: str, layer: int) -> Any:
    """The module whose output (input for mlp_hidden) is the site."""
    if site == "residual":
        return anatomy.blocks[layer]
    mlp = anatomy.mlps[layer]
    if site == "mlp_out":
        return mlp.output_module
    outs = [matrix.module for matrix in mlp.matrices if matrix.component == "mlp_out"]
    if len(outs) != 1:
        raise BadInput(
            f"layer {layer} has no single hidden MLP activation (a mixture of experts has one per "
            "expert): use --site mlp_out or residual"
        )
    return outs[0]


Receive = Callable[[int, Tensor], Tensor]
"""Gets layer and activation as the model has it, gives the activation to go on with."""


@contextmanager
def watch(anatomy: Anatomy, site: str, layers: Sequence[int], receive: Receive) -> Iterator[None]:
    """Hand the activation of each layer to `receive` as it is made; hooks go with the block."""

    def before(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return (receive(layer, args[0]), *args[1:])

        return hook

    def after(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (receive(layer, output[0]), *output[1:])
            return receive(layer, output)

        return hook

    with loading.hooks() as handles:
        for layer in layers:
            module = _module(anatomy, site, layer)
            if site == "mlp_hidden":
                handles.append(module.register_forward_pre_hook(before(layer)))
            else:
                handles.append(module.register_forward_hook(after(layer)))
        yield


@contextmanager
def watch_entries(
    anatomy: Anatomy, layers: Sequence[int], keep: dict[int, Tensor]
) -> Iterator[None]:
    """Keep what enters each MLP."""

    def reader(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    with loading.hooks() as handles:
        for layer in layers:
            module = anatomy.mlps[layer].input_module
            handles.append(module.register_forward_pre_hook(reader(layer), with_kwargs=True))
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients: a graph then starts at the first layer that is watched."""
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def counted_rows(activation: Tensor, counted: Tensor) -> Tensor:
    """`[n, d]` from `[B, positions, d]` or, as OPT has it, `[B · positions, d]`."""
    return activation.reshape(*counted.shape, -1)[counted]


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────


def loss_gradient(logits: Tensor, batch: loading.Batch) -> tuple[float, int, Tensor]:
    """Summed next-token loss in nats, number of predictions, and ∂loss/∂logits.

    logits `[B, positions, V]`. The gradient is softmax − one-hot where a token follows and zero
    elsewhere; forming it piece by piece spares the log-probabilities of a large vocabulary.
    """
    follows = batch.attention_mask[:, 1:].bool()
    targets = batch.input_ids[:, 1:]
    gradient = torch.zeros_like(logits)
    total = 0.0
    step = max(1, _ENTRIES // logits.shape[-1])
    for row in range(len(logits)):
        places = follows[row].nonzero()[:, 0]
        for part in places.split(step):
            scores = logits[row, part].detach().float()
            log_p = scores.log_softmax(-1)
            next_token = targets[row, part][:, None]
            total -= float(log_p.gather(1, next_token).sum())
            slope = log_p.exp_()
            slope.scatter_add_(1, next_token, -torch.ones_like(next_token, dtype=slope.dtype))
            gradient[row, part] = slope.to(gradient.dtype)
    return total, int(follows.sum()), gradient
