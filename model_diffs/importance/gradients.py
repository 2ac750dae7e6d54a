"""The gradient of the loss at a model's logits, for a graph that begins at the watched sites."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model_diffs.models import loading

_ENTRIES = 1 << 22  # logits whose softmax is formed at a time: 16 MiB in fp32


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
