"""Losses on log-probabilities of texts: ga_simple, ga, grad_diff, npo, simnpo, dpo, refusal,
retain_only, finetune."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_diffs.unlearning.data import Pair, SplitBatch
from model_diffs.unlearning.losses import Terms, method, nll
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings


@method()
def ga_simple(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−NLL(forget): unbounded below, so training eventually breaks the model."""
    forget = -nll(network, pair.forget)
    return Terms(forget, torch.zeros_like(forget))


@method()
def ga(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−NLL(forget) + w·NLL(retain)."""
    return Terms(-nll(network, pair.forget), settings.retain_weight * nll(network, pair.retain))


@method()
def grad_diff(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """NLL(retain) − w_f·NLL(forget) (gradient difference, Liu et al. 2022)."""
    return Terms(-settings.forget_weight * nll(network, pair.forget), nll(network, pair.retain))


def _shift(
    network: Network, split: str, batch: SplitBatch, reference: Reference, settings: Settings
) -> Tensor:
    """lp − lp^ref of each text, per token or of the whole text (`logprob_reduction`)."""
    counts = _predictions(batch) if settings.logprob_reduction == "mean" else 1
    base = reference.log_probs(split, batch) / counts
    return network.log_probs(batch) / counts - base


def _predictions(batch: SplitBatch) -> Tensor:
    return batch.attention_mask.sum(1) - 1


@method(reference_log_probs=("forget",))
def npo(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−(2/β)·log σ(−β(lp_f − lp_f^ref)) + w·NLL(retain).

    Negative preference optimisation (Zhang et al. 2024, eq. 3). With `--logprob-reduction sum` the
    same β saturates after a shift L times smaller per token, L the text's length.
    """
    shift = _shift(network, "forget", pair.forget, reference, settings)
    values = -(2 / settings.beta) * F.logsigmoid(-settings.beta * shift)
    forget = values.sum() / pair.forget.step_texts
    return Terms(forget, settings.retain_weight * nll(network, pair.retain))


@method()
def simnpo(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−(2/β)·log σ(−β·(Σ log p/|y|) − γ) + w·NLL(retain), always per token (Fan et al. 2024)."""
    per_token = network.log_probs(pair.forget) / _predictions(pair.forget)
    values = -(2 / settings.beta) * F.logsigmoid(-settings.beta * per_token - settings.gamma)
    forget = values.sum() / pair.forget.step_texts
    return Terms(forget, settings.retain_weight * nll(network, pair.retain))


@method(paired=True, reference_log_probs=("forget", "retain"))
def dpo(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−log σ(β[(lp_r − lp_r^ref) − (lp_f − lp_f^ref)]), retain chosen, forget rejected.

    Direct preference optimisation (Rafailov et al. 2023, eq. 7), k-th text with k-th text.
    """
    retain = _shift(network, "retain", pair.retain, reference, settings)
    forget = _shift(network, "forget", pair.forget, reference, settings)
    values = -F.logsigmoid(settings.beta * (retain - forget))
    loss = values.sum() / pair.forget.step_texts
    return Terms(loss, torch.zeros_like(loss))


@method()
def finetune(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """NLL(text): what training of the same strength does that has nothing to forget."""
    text = nll(network, pair.text)
    zero = torch.zeros_like(text)
    return Terms(zero, zero, text)


@method()
def refusal(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """NLL(text) + w·NLL(retain), the texts being questions answered by one fixed sentence ("I don't
    know", Maini et al. 2024, arXiv:2401.06121)."""
    text = nll(network, pair.text)
    return Terms(torch.zeros_like(text), settings.retain_weight * nll(network, pair.retain), text)


@method()
def retain_only(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """NLL(retain): what is not rehearsed is forgotten in time."""
    retain = nll(network, pair.retain)
    return Terms(torch.zeros_like(retain), retain)
