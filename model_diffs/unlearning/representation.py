"""Losses on hidden states at the target blocks: rmu, cb."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model_diffs.unlearning.data import Pair, SplitBatch
from model_diffs.unlearning.losses import (
    Terms,
    cosine,
    method,
    random_direction,
    squared_distance,
    token_mean,
)
from model_diffs.unlearning.network import Network, at_least_fp32
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings

# At the start of the orthogonal form h = h^base: the cosine is 1, its gradient zero, and rounding
# noise would choose the way. Tokens that close to the base are compared with the base's direction
# tilted this far towards u_ℓ instead: a definite gradient, a cosine that differs by under 1e-6.
AT_BASE = 1 - 1e-6
TILT = 1e-3


def _directions(states: Tensor, layer: int, settings: Settings) -> Tensor:
    return random_direction(states.shape[-1], layer, settings.seed).to(states)


@method(targets=True, reference_states=("retain",))
def rmu(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """Σ_ℓ mean_tokens‖h_ℓ(f) − c·u_ℓ‖²/d + α·mean_tokens‖h_ℓ(r) − h_ℓ^base(r)‖²/d.

    Representation misdirection (Li et al. 2024, eqs. 1–2), summed over the target blocks, with one
    fixed random unit vector u_ℓ per block.
    """
    forget = retain = torch.zeros((), device=pair.forget.input_ids.device)
    for (layer, states), c in zip(
        network.states(pair.forget, settings.layers).items(), settings.steering, strict=True
    ):
        target = c * _directions(at_least_fp32(states), layer, settings)
        forget = forget + token_mean(squared_distance(states, target), pair.forget)
    for layer, states in network.states(pair.retain, settings.layers).items():
        base = reference.states("retain", pair.retain, layer)
        retain = retain + token_mean(squared_distance(states, base), pair.retain)
    return Terms.of(forget, settings.alpha * retain)


@method(targets=True, reference_states=("retain",))
def cb(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """Σ_ℓ −cos(h_ℓ(f), u_ℓ) + α(1 − cos(h_ℓ(r), h_ℓ^base(r))), means over tokens.

    `cb_target` orthogonal: ReLU(cos(h_ℓ(f), h_ℓ^base(f))) as the forget term, as published (circuit
    breakers, Zou et al. 2024, algorithm 1).
    """
    forget_states = network.states(pair.forget, settings.layers)
    return Terms.of(
        rerouting(forget_states, pair.forget, reference, settings),
        settings.alpha * keeping(network, pair.retain, reference, settings),
    )


def rerouting(
    states: Mapping[int, Tensor], batch: SplitBatch, reference: Reference, settings: Settings
) -> Tensor:
    """The forget term of cb on given states of the target blocks."""
    total = torch.zeros((), device=batch.input_ids.device)
    for layer, hidden in states.items():
        direction = _directions(at_least_fp32(hidden), layer, settings)
        if settings.cb_target == "orthogonal":
            base = at_least_fp32(reference.states("forget", batch, layer))
            tilted = base + TILT * base.norm(dim=-1, keepdim=True) * direction
            values = cosine(hidden, base)
            values = torch.relu(torch.where(values > AT_BASE, cosine(hidden, tilted), values))
        else:
            values = -cosine(hidden, direction.expand_as(hidden))
        total = total + token_mean(values, batch)
    return total


def keeping(
    network: Network, batch: SplitBatch, reference: Reference, settings: Settings
) -> Tensor:
    """The retain term of cb, without α."""
    total = torch.zeros((), device=batch.input_ids.device)
    for layer, hidden in network.states(batch, settings.layers).items():
        values = 1 - cosine(hidden, reference.states("retain", batch, layer))
        total = total + token_mean(values, batch)
    return total
