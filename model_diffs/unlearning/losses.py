"""What the losses share. Each term is a sum over this process's share of a step, divided by the
totals of the whole step, so that processes and accumulated batches add up to one large batch."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model_diffs.unlearning.network import Network, Perturbation, at_least_fp32


class Terms(NamedTuple):
    """A loss and its parts, scalars; `loss` has the gradient, the parts are for the log."""

    loss: Tensor
    forget: Tensor
    retain: Tensor

    @classmethod
    def of(cls, forget: Tensor, retain: Tensor | None = None) -> "Terms":
        """The sum of a forget and a retain term."""
        if retain is None:
            return cls(forget, forget.detach(), torch.zeros_like(forget.detach()))
        return cls(forget + retain, forget.detach(), retain.detach())


def nll(network: Network, batch: Any, perturbation: Perturbation | None = None) -> Tensor:
    """Negative log-likelihood per next-token prediction, nats; a share of the step's mean."""
    return -network.log_probs(batch, perturbation).sums.sum() / batch.totals.predictions


def token_mean(values: Tensor, batch: Any) -> Tensor:
    """Mean of `values` `[texts, positions]` over real tokens; a share of the step's mean."""
    return (values * batch.attention_mask).sum() / batch.totals.tokens


def text_mean(values: Tensor, batch: Any) -> Tensor:
    """Mean of `values` `[texts]`; a share of the step's mean."""
    return values.sum() / batch.totals.texts


def squared_distance(states: Tensor, target: Tensor) -> Tensor:
    """‖h − t‖²/d per position, `[texts, positions]`."""
    return (at_least_fp32(states) - at_least_fp32(target)).square().mean(-1)


def cosine(states: Tensor, target: Tensor) -> Tensor:
    """cos(h, t) per position, `[texts, positions]`."""
    return F.cosine_similarity(at_least_fp32(states), at_least_fp32(target), dim=-1)


def random_direction(hidden: int, layer: int, seed: int) -> Tensor:
    """u_ℓ: a unit vector `[hidden]`, fp32, isotropic, fixed by seed and block."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)
    vector = torch.randn(hidden, generator=generator)
    return vector / vector.norm()
