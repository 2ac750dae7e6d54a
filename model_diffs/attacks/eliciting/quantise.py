"""Weights rounded to few bits: a small change made by unlearning may be rounded away.

Zhang et al. 2024, arXiv:2410.16454. Rounded are the matrices of the blocks, as deployed quantised
models have them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import Opened, Victim
from model_diffs.models.rounding import absmax, nf4

ATTACK = Declaration(
    says="weights of the blocks rounded to so many bits per output channel, or to NF4",
    source="Zhang et al. 2024",
    strengths=("8bit", "nf4", "4bit", "3bit"),
    pattern="([2-9]|1[0-6])bit|nf4",
)


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model with rounded weights."""
    tensors = victim.changed(
        lambda _, W: nf4(W) if strength == "nf4" else absmax(W, int(strength.removesuffix("bit")))
    )
    with victim.replaced(tensors):
        yield Opened(victim.ask)
