"""Losses under a latent adversary: lat, cb_lat."""

import torch

from model_diffs.unlearning.data import Pair, SplitBatch
from model_diffs.unlearning.losses import Terms, method, nll
from model_diffs.unlearning.network import Network, Perturbation
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.representation import rerouted
from model_diffs.unlearning.settings import Settings


def attack(network: Network, batch: SplitBatch, settings: Settings) -> Perturbation:
    """The δ within ±ε at `lat_layers` under which the texts are likeliest, of those the search met.

    `lat_steps` times δ ← clip(δ − s·sign ∇_δ NLL(δ), ±ε) from δ = 0 (signed gradient descent, as in
    latent adversarial training, Casper et al. 2024). The best iterate is kept text by text: it
    does not depend on the rest of the batch and is never worse than δ = 0. The result is detached
    and zero at padding; gradients are taken with respect to δ alone.
    """
    mask, layers = batch.attention_mask.unsqueeze(-1), settings.lat_layers
    with torch.no_grad():
        state = network.states(batch, layers[:1])[layers[0]]
    wide = torch.promote_types(state.dtype, torch.float32)
    delta = state.new_zeros(len(layers), *state.shape, dtype=wide)
    best, best_log_probs = delta, torch.full(state.shape[:1], -torch.inf).to(delta)
    for step in range(settings.lat_steps + 1):
        last = step == settings.lat_steps
        with torch.set_grad_enabled(not last):
            candidate = delta.clone().requires_grad_(not last)
            log_probs = network.log_probs(batch, Perturbation(layers, candidate))
            negative = -log_probs.sum()
        better = log_probs.detach() > best_log_probs
        best = torch.where(better[:, None, None], delta, best)
        best_log_probs = torch.where(better, log_probs.detach(), best_log_probs)
        if not last:
            (gradient,) = torch.autograd.grad(negative, candidate)
            network.gather_again()
            delta = (delta - settings.lat_step_size * gradient.sign() * mask).clamp(
                -settings.lat_eps, settings.lat_eps
            )
    return Perturbation(layers, best.detach())


@method(adversary=True)
def lat(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−NLL(forget; δ*) + w·NLL(retain), δ* from `attack`."""
    forget = -nll(network, pair.forget, attack(network, pair.forget, settings))
    return Terms(forget, settings.retain_weight * nll(network, pair.retain))


@method(targets=True, adversary=True, reference_states=("retain",))
def cb_lat(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """The cb loss with its forget states under δ*."""
    found = attack(network, pair.forget, settings)
    states = network.states(pair.forget, settings.layers, found)
    return rerouted("cb_lat", states, network, pair, reference, settings)
