"""The change of weights, weighted by how much the base's predictions depend on each.

Diagonal empirical Fisher information of the base, as in elastic weight consolidation (Kirkpatrick
et al. 2017, arXiv:1612.00796). Gradients are the base's; the changed model is not differentiated.
"""

import math

import torch
from torch import Tensor

from model_diffs.attacks.victim import Victim
from model_diffs.brittleness.attack_free.pair import Declaration, Pair
from model_diffs.models import loading
from model_diffs.unlearning.data import split_batch
from model_diffs.unlearning.losses import nll
from model_diffs.unlearning.network import Network

MEASURES = (
    Declaration("fisher_forget", "ln √Σ F ΔW², F the base's Fisher on forget texts.", True),
    Declaration("fisher_retain", "The same with F on retain texts.", True),
    Declaration("fisher_ratio", "fisher_forget − fisher_retain.", True),
)
TEXTS = 48
"""Of each split, one gradient each."""


def fisher(model: str, pair: Pair) -> dict[str, dict[str, Tensor]]:
    """By split and parameter: mean over texts of the squared gradient of the text's NLL."""
    options = pair.victim.options
    base = Network(loading.load_for(options, model).requires_grad_(True))
    pad = pair.victim.tokenizer.pad_token_id or 0
    found: dict[str, dict[str, Tensor]] = {}
    named = dict(base.model.named_parameters())
    for part in pair.victim.sample():
        ids = [one for one in part.tokens.ids if len(one) > 1]
        step = max(1, len(ids) // TEXTS)
        rows = range(0, len(ids), step)[:TEXTS]
        sums = {name: torch.zeros_like(one) for name, one in named.items()}
        for row in rows:
            loss = nll(base, split_batch(ids, [row], pad, pair.victim.device))
            gradients = torch.autograd.grad(loss, [*named.values()])
            for name, gradient in zip(named, gradients, strict=True):
                sums[name] += gradient.square() / len(rows)
        found[part.split.name] = sums
    return found


def weighted(victim: Victim, F: dict[str, Tensor]) -> float:
    """ln √Σ F (W − W_base)²; −∞ becomes the logarithm of the smallest fp64 number."""
    assert victim.base is not None
    total = sum(
        float((F[name] * (W - B).square()).sum()) for name, W, B in victim.tensors(victim.base)
    )
    return 0.5 * math.log(max(total, 1e-300))


def measure(pair: Pair) -> dict[str, float]:
    """Over all weights."""
    assert pair.victim.base is not None
    if "fisher" not in pair.shared:
        pair.shared["fisher"] = fisher(pair.victim.base.model, pair)
    forget, retain = (
        weighted(pair.victim, pair.shared["fisher"][split]) for split in ("forget", "retain")
    )
    return {"fisher_forget": forget, "fisher_retain": retain, "fisher_ratio": forget - retain}
