"""Losses that are sums of NLLs: ga_simple, ga, grad_diff."""

from model_diffs.unlearning.data import Pair
from model_diffs.unlearning.losses import Terms, method, nll
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings


@method(uses_retain=False)
def ga_simple(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−NLL(forget): unbounded below, so training eventually breaks the model."""
    return Terms.of(-nll(network, pair.forget))


@method()
def ga(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """−NLL(forget) + w·NLL(retain)."""
    return Terms.of(-nll(network, pair.forget), settings.retain_weight * nll(network, pair.retain))


@method()
def grad_diff(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """NLL(retain) − w_f·NLL(forget) (gradient difference, Liu et al. 2022)."""
    return Terms.of(-settings.forget_weight * nll(network, pair.forget), nll(network, pair.retain))
