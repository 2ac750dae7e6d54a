"""Losses on hidden states at the target blocks: rmu, cb."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model_diffs.unlearning.data import Pair, SplitBatch
from model_diffs.unlearning.losses import Terms, cosine, method, random_direction, token_mean
from model_diffs.unlearning.network import Network, at_least_fp32
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings

# At the start of the orthogonal form h = h^base: the cosine is 1, its gradient zero, and rounding
# noise would choose the way. Tokens that close to the base are compared with the base's direction
# tilted this far towards u_ℓ instead: a definite gradient, a cosine that differs by under 1e-6.
AT_BASE = 1 - 1e-6
TILT = 1e-3


def _squared_distance(states: Tensor, target: Tensor, batch: SplitBatch, skip: int) -> Tensor:
    """mean_tokens‖h − t‖²/d, without the first `skip` positions."""
    difference = at_least_fp32(states) - at_least_fp32(target)
    return token_mean(difference.square().mean(-1), batch, skip)


def _direction(states: Tensor, layer: int, settings: Settings, name: str) -> Tensor:
    return random_direction(states.shape[-1], layer, settings.seed, name).to(at_least_fp32(states))


@method(targets=True, reference_states=("retain",))
def rmu(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """Σ_ℓ mean_tokens‖h_ℓ(f) − c·u_ℓ‖²/d + α·mean_tokens‖h_ℓ(r) − h_ℓ^base(r)‖²/d.

    Representation misdirection (Li et al. 2024, eqs. 1–2), summed over the target blocks, with one
    fixed random unit vector u_ℓ per block. An attention sink at the first position is left out of
    both means: its square would be nearly all of them.
    """
    skip = settings.skip_first
    forget = retain = torch.zeros((), device=pair.forget.input_ids.device)
    states = network.states(pair.forget, settings.layers)
    for (layer, hidden), c in zip(states.items(), settings.steering, strict=True):
        target = c * _direction(hidden, layer, settings, "rmu")
        forget = forget + _squared_distance(hidden, target, pair.forget, skip)
    for layer, hidden in network.states(pair.retain, settings.layers).items():
        base = reference.states("retain", pair.retain, layer)
        retain = retain + _squared_distance(hidden, base, pair.retain, skip)
    return Terms(forget, settings.alpha * retain)


@method(targets=True, reference_states=("retain",))
def cb(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """Σ_ℓ −cos(h_ℓ(f), u_ℓ) + α(1 − cos(h_ℓ(r), h_ℓ^base(r))), means over tokens.

    `cb_target` orthogonal: ReLU(cos(h_ℓ(f), h_ℓ^base(f))) as the forget term, as published (circuit
    breakers, Zou et al. 2024, algorithm 1).
    """
    states = network.states(pair.forget, settings.layers)
    return rerouted("cb", states, network, pair, reference, settings)


def rerouted(
    name: str,
    forget_states: Mapping[int, Tensor],
    network: Network,
    pair: Pair,
    reference: Reference,
    settings: Settings,
) -> Terms:
    """The terms of cb for given states of the forget texts at the target blocks.

    `name`: the method, which draws its own directions.
    """
    forget = retain = torch.zeros((), device=pair.forget.input_ids.device)
    for layer, hidden in forget_states.items():
        direction = _direction(hidden, layer, settings, name)
        if settings.cb_target == "orthogonal":
            base = at_least_fp32(reference.states("forget", pair.forget, layer))
            tilted = base + TILT * base.norm(dim=-1, keepdim=True) * direction
            values = cosine(hidden, base)
            values = torch.relu(torch.where(values > AT_BASE, cosine(hidden, tilted), values))
        else:
            values = -cosine(hidden, direction.expand_as(hidden))
        forget = forget + token_mean(values, pair.forget)
    for layer, hidden in network.states(pair.retain, settings.layers).items():
        values = 1 - cosine(hidden, reference.states("retain", pair.retain, layer))
        retain = retain + token_mean(values, pair.retain)
    return Terms(forget, settings.alpha * retain)
