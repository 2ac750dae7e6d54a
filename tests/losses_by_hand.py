"""Each unlearning loss worked out text by text, without padding, in fp64; two texts a split."""

from typing import Any

import tiny_models
import torch
import torch.nn.functional as F

from model_diffs.models.loading import hooks
from model_diffs.unlearning.data import Pair, split_batch
from model_diffs.unlearning.losses import random_direction
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import CachedReference
from model_diffs.unlearning.settings import Settings

FORGET = [[5, 9, 30, 41, 7], [8, 12, 60]]
RETAIN = [[17, 23, 4, 4], [99, 31, 6, 55, 80, 3, 42]]
TEXT = [[11, 70, 8], [4, 19, 66, 25, 90]]
CPU = torch.device("cpu")
SETTINGS = Settings(
    beta=0.7,
    gamma=0.3,
    forget_weight=0.8,
    retain_weight=1.7,
    alpha=3.0,
    layers=(0, 1),
    steering=(2.0, 5.0),
    lat_layers=(0,),
    lat_eps=0.05,
    lat_steps=3,
    lat_step_size=0.02,
)


def make_network(family: str = "gpt_neox", seed: int = 0) -> Network:
    return Network(tiny_models.build(family, seed).double())


def make_pair(forget: Any = FORGET, retain: Any = RETAIN, extra: int = 0, text: Any = TEXT) -> Pair:
    """Batches of whole splits; `extra` adds positions of padding."""
    batches = []
    for texts in (forget, retain, text):
        batch = split_batch(texts, range(len(texts)), 0, CPU)
        ids = F.pad(batch.input_ids, (0, extra), value=77)
        mask = F.pad(batch.attention_mask, (0, extra))
        batches.append(batch._replace(input_ids=ids, attention_mask=mask))
    return Pair(*batches)


def make_reference(network: Network, pair: Pair, layers: Any = (0, 1, 2)) -> CachedReference:
    reference = CachedReference(torch.float64, layers, None)  # type: ignore[arg-type]
    for split, batch in (("forget", pair.forget), ("retain", pair.retain)):
        assert batch is not None
        lengths = batch.attention_mask.sum(1).tolist()
        reference.reserve(split, dict(zip(batch.indices, lengths, strict=True)), tiny_models.HIDDEN)
        reference.fill(network, split, batch, "log_probs")
        reference.fill(network, split, batch, "states")
    reference.teacher = network
    return reference


def token_log_probs(network: Network, ids: list[int], delta: torch.Tensor | None = None) -> Any:
    """log p of each token but the first, from the model's own logits."""
    with hooks() as handles:
        if delta is not None:
            block = network.blocks[SETTINGS.lat_layers[0]]
            handles.append(block.register_forward_hook(lambda m, a, out: _added(out, delta)))
        logits = network.model(input_ids=torch.tensor([ids])).logits[0]
    table = logits - logits.exp().sum(-1, keepdim=True).log()
    return torch.stack([table[i, token] for i, token in enumerate(ids[1:])])


def _added(output: Any, delta: torch.Tensor) -> Any:
    if isinstance(output, tuple):
        return (output[0] + delta, *output[1:])
    return output + delta


def every_log_prob(network: Network, ids: list[int]) -> torch.Tensor:
    """At each position with a next token, `[positions, vocabulary]`."""
    return network.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def states(network: Network, ids: list[int], layer: int) -> torch.Tensor:
    found = network.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return found[layer + 1][0]


def mean_nll(network: Network, texts: list[list[int]]) -> torch.Tensor:
    return -torch.cat([token_log_probs(network, ids) for ids in texts]).mean()


def log_sigma(x: torch.Tensor) -> torch.Tensor:
    return -torch.log(1 + torch.exp(-x))


def shifts(network: Network, base: Network, texts: list[list[int]], reduction: str) -> Any:
    return [
        getattr(token_log_probs(network, ids), reduction)()
        - getattr(token_log_probs(base, ids), reduction)()
        for ids in texts
    ]


def by_hand(name: str, network: Network, base: Network, s: Settings) -> torch.Tensor:
    if name in ("finetune", "task_arithmetic"):
        return mean_nll(network, TEXT if name == "finetune" else FORGET)
    if name == "noise_distil":  # KL(teacher ‖ model); the base is the teacher
        taught, own = (
            torch.cat([every_log_prob(one, ids) for ids in TEXT]) for one in (base, network)
        )
        return (taught.exp() * (taught - own)).sum(1).mean()
    retain_nll = mean_nll(network, RETAIN)
    if name in ("prune", "retain_only"):
        return retain_nll
    if name == "refusal":
        return mean_nll(network, TEXT) + s.retain_weight * retain_nll
    if name in ("ga_simple", "ga", "grad_diff"):
        forget_nll = mean_nll(network, FORGET)
        return {
            "ga_simple": -forget_nll,
            "ga": -forget_nll + s.retain_weight * retain_nll,
            "grad_diff": retain_nll - s.forget_weight * forget_nll,
        }[name]
    if name == "npo":
        moved = shifts(network, base, FORGET, s.logprob_reduction)
        terms = [-2 / s.beta * log_sigma(-s.beta * one) for one in moved]
        return sum(terms) / 2 + s.retain_weight * retain_nll
    if name == "simnpo":
        means = [token_log_probs(network, ids).mean() for ids in FORGET]
        terms = [-2 / s.beta * log_sigma(-s.beta * one - s.gamma) for one in means]
        return sum(terms) / 2 + s.retain_weight * retain_nll
    if name == "dpo":
        forget = shifts(network, base, FORGET, s.logprob_reduction)
        retain = shifts(network, base, RETAIN, s.logprob_reduction)
        terms = [-log_sigma(s.beta * (r - f)) for f, r in zip(forget, retain, strict=True)]
        return sum(terms) / 2
    total = torch.zeros((), dtype=torch.float64)
    for layer, c in zip(s.layers, s.steering, strict=True):
        u = random_direction(tiny_models.HIDDEN, layer, s.seed, name).double()
        h_f = torch.cat([states(network, ids, layer) for ids in FORGET])
        h_r = torch.cat([states(network, ids, layer) for ids in RETAIN])
        base_f = torch.cat([states(base, ids, layer) for ids in FORGET])
        base_r = torch.cat([states(base, ids, layer) for ids in RETAIN])
        if name == "rmu":
            total = total + ((h_f - c * u) ** 2).sum(1).mean() / tiny_models.HIDDEN
            total = total + s.alpha * ((h_r - base_r) ** 2).sum(1).mean() / tiny_models.HIDDEN
        else:
            keep = (1 - F.cosine_similarity(h_r, base_r)).mean()
            if s.cb_target == "orthogonal":
                reroute = torch.relu(F.cosine_similarity(h_f, base_f)).mean()
            else:
                reroute = -(h_f @ u / h_f.norm(dim=1)).mean()
            total = total + reroute + s.alpha * keep
    return total
