"""The smallest weights of every matrix of the blocks set to zero.

A change spread thinly over small weights goes with them; knowledge that training built into large
ones stays (magnitude pruning, Han et al. 2015, arXiv:1506.02626).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model_diffs.attacks.registry import Declaration, Range
from model_diffs.attacks.victim import Opened, Victim

ATTACK = Declaration(
    says="the p % smallest weights of every matrix of the blocks are set to zero",
    source="Han et al. 2015",
    strengths=("p10", "p20", "p30", "p50"),
    pattern=r"p[0-9]{1,2}(\.[0-9]+)?",
    range=Range(1, 80, "p{:.1f}"),
)


def most(values: Tensor, percent: float, largest: bool = True) -> Tensor:
    """Mask of the `percent` % largest, or smallest, entries; of equal ones the earlier."""
    count = round(values.numel() * percent / 100)
    order = values.reshape(-1).argsort(descending=largest, stable=True)
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[order[:count]] = True
    return mask.reshape(values.shape)


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model without its smallest weights."""
    share = float(strength.removeprefix("p"))
    tensors = victim.changed(lambda _, W: W.masked_fill(most(W.abs(), share, largest=False), 0.0))
    with victim.replaced(tensors):
        yield Opened(victim.ask)
