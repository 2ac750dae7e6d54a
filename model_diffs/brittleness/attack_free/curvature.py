"""How sharply the forget loss bends at the model, from losses alone: no gradient is taken.

Along random directions the second difference of the loss estimates the trace of its Hessian
(Hutchinson 1990), here for a step of a given share of each matrix; along the line to the base it
tells how soon the loss falls again.
"""

import torch
from torch import Tensor

from model_diffs.brittleness.attack_free.pair import Declaration, Pair
from model_diffs.unlearning.data import SplitBatch, split_batch
from model_diffs.unlearning.losses import generator_of, nll
from model_diffs.unlearning.network import Network

MEASURES = (
    Declaration("forget_nll", "NLL of forget texts, nats per token."),
    Declaration("curvature", "Mean second difference of the forget NLL, random directions."),
    Declaration("slope_to_base", "Fall of the forget NLL a tenth of the way to the base.", True),
    Declaration("fall_to_base", "Share of the fall to the base's NLL that is done half-way.", True),
)
TEXTS = 128
DIRECTIONS = 4
SHARE = 0.03
"""Norm of a random step in each tensor, over that of the tensor."""


@torch.no_grad()
def measure(pair: Pair) -> dict[str, float]:
    """On evenly spaced forget texts."""
    victim = pair.victim
    assert victim.base is not None
    network, ids = Network(victim.model), [i for i in victim.sample()[0].tokens.ids if len(i) > 1]
    rows = list(range(0, len(ids), max(1, len(ids) // TEXTS)))[:TEXTS]
    batch = split_batch(ids, rows, victim.tokenizer.pad_token_id or 0, victim.device)
    here = float(nll(network, batch))
    to_base = [(name, W, B - W) for name, W, B in victim.tensors(victim.base)]
    tenth, half, whole = (_moved(pair, network, batch, to_base, t) for t in (0.1, 0.5, 1.0))
    bends = []
    for number in range(DIRECTIONS):
        step = [(name, W, _random(pair.seed, number, name, W)) for name, W, _ in to_base]
        ends = [_moved(pair, network, batch, step, sign) for sign in (1.0, -1.0)]
        bends.append(sum(ends) - 2 * here)
    fall = here - whole
    return {
        "forget_nll": here,
        "curvature": sum(bends) / len(bends),
        "slope_to_base": here - tenth,
        "fall_to_base": (here - half) / fall if abs(fall) > 1e-3 else 0.0,
    }


def _random(seed: int, number: int, name: str, W: Tensor) -> Tensor:
    drawn = torch.randn(W.shape, generator=generator_of(seed, number, name)).to(W)
    return drawn * (SHARE * W.norm() / drawn.norm())


def _moved(
    pair: Pair,
    network: Network,
    batch: SplitBatch,
    step: list[tuple[str, Tensor, Tensor]],
    times: float,
) -> float:
    with pair.victim.replaced((name, W + times * d) for name, W, d in step):
        return float(nll(network, batch))
