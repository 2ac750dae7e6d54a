"""The most changed weights of every matrix of the blocks set to zero, or to the base's.

Where a change sits in few weights, taking those away undoes it. Which ones they are, the base
tells: it is read also where weights are set to zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model_diffs.attacks.eliciting.prune import most
from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Victim
from model_diffs.models.architectures import Matrix

ATTACK = Declaration(
    says="the p % most changed weights of every matrix of the blocks are set to zero or the base's",
    source="",
    strengths=("zero1", "zero5", "zero20", "base1", "base5", "base20"),
    pattern=r"(zero|base)[0-9]{1,2}(\.[0-9]+)?",
    reads=("base",),
)


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model without its most changed weights."""
    assert victim.base is not None
    if victim.distance(victim.base) == 0:
        raise NotApplicable(f"its weights are those of {victim.base.model}")
    to_base, share = strength.startswith("base"), float(strength[len("base") :])
    read = victim.reading(victim.base)

    def pruned(matrix: Matrix, W: Tensor) -> Tensor:
        B = read(matrix)
        put = B if to_base else torch.zeros_like(B)
        return torch.where(most((W - B).abs(), share), put, W)

    with victim.replaced(victim.changed(pruned)):
        yield Opened(victim.ask)
