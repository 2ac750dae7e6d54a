"""What the losses share, and where they register.

Each term is a sum over this process's share of a step, divided by the totals of the whole step, so
that processes and accumulated batches add up to one large batch.
"""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model_diffs.core.methods import METHODS
from model_diffs.unlearning.network import Network, Perturbation, at_least_fp32


class Terms(NamedTuple):
    """The terms of a loss, scalars, weights included."""

    forget: Tensor
    retain: Tensor
    text: Any = 0.0
    """Of fine-tuning, which has neither of the other two."""

    @property
    def loss(self) -> Tensor:
        """What is minimised: their sum."""
        return self.forget + self.retain + self.text


@dataclass(frozen=True)
class Loss:
    """A loss function and what the trainer has to provide for it."""

    name: str
    """Key of `model_diffs.core.methods.METHODS`."""
    compute: Callable[..., Terms]
    """(network, batches, reference, settings) → Terms."""
    paired: bool = False
    """The k-th forget text goes with the k-th retain text."""
    reference_log_probs: tuple[str, ...] = ()
    """Splits whose log-probability under the base the loss needs."""
    reference_states: tuple[str, ...] = ()
    """Splits whose hidden states under the base the loss needs, at the target blocks."""
    targets: bool = False
    """Reads hidden states at the blocks of --layer-id."""
    adversary: bool = False
    """Perturbs the hidden states at --lat-layer."""

    @property
    def trains_on(self) -> tuple[str, ...]:
        """Splits that it reads: `forget`, `retain`, `text`."""
        return METHODS[self.name].trains_on


LOSSES: dict[str, Loss] = {}
FAMILIES = (
    "likelihood",
    "representation",
    "adversarial",
    "arithmetic",
    "pruning",
    "distillation",
)
"""Files in which losses stand."""


def method(**needs: Any) -> Callable[[Callable[..., Terms]], Callable[..., Terms]]:
    """Decorator: register a loss function under its own name, with the fields of `Loss`."""

    def register(compute: Callable[..., Terms]) -> Callable[..., Terms]:
        name = METHODS[compute.__name__].name
        LOSSES[name] = Loss(name, compute, **needs)
        return compute

    return register


def get_loss(name: str) -> Loss:
    """The loss of a method."""
    for family in FAMILIES:
        importlib.import_module(f"{__package__}.{family}")
    return LOSSES[name]


# ── terms ─────────────────────────────────────────────────────────────────────────────────────────


def nll(network: Network, batch: Any, perturbation: Perturbation | None = None) -> Tensor:
    """Negative log-likelihood per next-token prediction, nats; a share of the step's mean."""
    predictions = batch.step_tokens - batch.step_texts
    return -network.log_probs(batch, perturbation).sum() / predictions


def token_mean(values: Tensor, batch: Any, skip: int = 0) -> Tensor:
    """Mean of `values` `[texts, positions]` over real tokens, without the first `skip` of each
    text; a share of the step's mean."""
    tokens = batch.step_tokens - skip * batch.step_texts
    return (values * batch.attention_mask)[:, skip:].sum() / tokens


def cosine(states: Tensor, target: Tensor) -> Tensor:
    """cos(h, t) per position, `[texts, positions]`."""
    return F.cosine_similarity(at_least_fp32(states), at_least_fp32(target), dim=-1)


def generator_of(*words: object) -> torch.Generator:
    """A generator of the CPU that these words seed, such as seed, method and name of a matrix."""
    digest = hashlib.sha256(" ".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]))


def random_direction(hidden: int, layer: int, seed: int, name: str) -> Tensor:
    """u_ℓ: a unit vector `[hidden]`, fp32, isotropic, fixed by seed, method and block.

    Each method draws its own: with one direction for all, what they share could be the direction's.
    """
    vector = torch.randn(hidden, generator=generator_of(seed, name, layer))
    return vector / vector.norm()
