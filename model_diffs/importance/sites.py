"""Where in a live model an activation is read, and the gradient of the loss at its logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy

_ENTRIES = 1 << 22  # logits whose softmax is formed at a time: 16 MiB in fp32

Receive = Callable[[int, Tensor], Tensor]
"""Gets layer and activation as the model has it, gives the activation to go on with."""


def _module(anatomy: Anatomy, site: str, layer: int) -> Any:
    """The module whose output (input for mlp_in and mlp_hidden) is the site."""
    mlp = anatomy.mlps[layer]
    if site != "mlp_hidden":
        modules = {"residual": anatomy.blocks[layer], "mlp_in": mlp.input_module}
        return modules.get(site, mlp.output_module)
    if "mlp_out" not in mlp.matrices:
        raise BadInput(
            f"layer {layer} has no single hidden MLP activation (a mixture of experts has one per "
            "expert): use --site mlp_out or residual"
        )
    return mlp.matrices["mlp_out"]


def _entering(receive: Callable[[Tensor], Tensor], _: Any, args: Any, kwargs: Any) -> Any:
    if args:
        return (receive(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": receive(kwargs["hidden_states"])}


def _leaving(receive: Callable[[Tensor], Tensor], _: Any, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (receive(output[0]), *output[1:])
    return receive(output)


@contextmanager
def watch(anatomy: Anatomy, site: str, layers: Sequence[int], receive: Receive) -> Iterator[None]:
    """Hand the activation of each layer to `receive` as it is made; the hooks end with the block.

    Sites: `mlp_in` (what enters the MLP), `mlp_hidden`, `mlp_out`, `residual`.
    """
    with loading.hooks() as handles:
        for layer in layers:
            module, of_layer = _module(anatomy, site, layer), partial(receive, layer)
            if site in ("mlp_in", "mlp_hidden"):
                hook = partial(_entering, of_layer)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(partial(_leaving, of_layer)))
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients: a graph then starts at the first layer that is watched."""
    learning = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def counted_rows(activation: Tensor, counted: Tensor) -> Tensor:
    """`[n, d]` from `[B, positions, d]` or, as OPT has it, `[B · positions, d]`."""
    return activation.reshape(*counted.shape, -1)[counted]


def loss_gradient(logits: Tensor, batch: loading.Batch) -> tuple[float, int, Tensor]:
    """Summed next-token loss in nats, number of predictions, and ∂loss/∂logits.

    logits `[B, positions, V]`. The gradient is softmax − one-hot where a token follows and zero
    elsewhere, formed in parts, so that log-probabilities of a large vocabulary are never held.
    """
    follows = batch.attention_mask[:, 1:].bool()
    targets = batch.input_ids[:, 1:]
    gradient = torch.zeros_like(logits)
    total = 0.0
    step = max(1, _ENTRIES // logits.shape[-1])
    for row in range(len(logits)):
        for part in follows[row].nonzero()[:, 0].split(step):
            log_p = logits[row, part].detach().float().log_softmax(-1)
            next_token = targets[row, part][:, None]
            total -= float(log_p.gather(1, next_token).sum())
            slope = log_p.exp_()
            slope.scatter_add_(1, next_token, -torch.ones_like(next_token, dtype=slope.dtype))
            gradient[row, part] = slope.to(gradient.dtype)
    return total, int(follows.sum()), gradient
