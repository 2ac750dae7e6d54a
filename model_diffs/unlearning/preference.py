"""Losses on log-probabilities of whole texts: dpo, npo, simnpo."""

import torch.nn.functional as F

from model_diffs.unlearning.data import Pair
from model_diffs.unlearning.losses import Terms, nll, text_mean
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings


def npo(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−(2/β)·log σ(−β(lp_f − lp_f^ref)) + w·NLL(retain).

    Negative preference optimisation (Zhang et al. 2024, eq. 3). lp is per token or of the whole
    text, by `logprob_reduction`: with `sum` the same β saturates after a shift L times smaller per
    token, L the text's length.
    """
    assert pair.retain is not None
    log_probs = network.log_probs(pair.forget)
    base = reference.log_probs("forget", pair.forget)._replace(counts=log_probs.counts)
    shift = log_probs.reduced(settings.logprob_reduction) - base.reduced(settings.logprob_reduction)
    values = -(2 / settings.beta) * F.logsigmoid(-settings.beta * shift)
    return Terms.of(
        text_mean(values, pair.forget), settings.retain_weight * nll(network, pair.retain)
    )


def simnpo(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−(2/β)·log σ(−β·(Σ log p/|y|) − γ) + w·NLL(retain), always per token (Fan et al. 2024)."""
    assert pair.retain is not None
    per_token = network.log_probs(pair.forget).reduced("mean")
    values = -(2 / settings.beta) * F.logsigmoid(-settings.beta * per_token - settings.gamma)
    return Terms.of(
        text_mean(values, pair.forget), settings.retain_weight * nll(network, pair.retain)
    )


def dpo(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−log σ(β[(lp_r − lp_r^ref) − (lp_f − lp_f^ref)]), retain chosen, forget rejected.

    Direct preference optimisation (Rafailov et al. 2023, eq. 7), k-th text with k-th text.
    """
    assert pair.retain is not None
    shifts = []
    for name, batch in (("retain", pair.retain), ("forget", pair.forget)):
        log_probs = network.log_probs(batch)
        base = reference.log_probs(name, batch)._replace(counts=log_probs.counts)
        shifts.append(
            log_probs.reduced(settings.logprob_reduction) - base.reduced(settings.logprob_reduction)
        )
    return Terms.of(text_mean(-F.logsigmoid(settings.beta * (shifts[0] - shifts[1])), pair.forget))
