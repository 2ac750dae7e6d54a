"""Weights on the way back to the base, and half-way to the filtered model.

Where two models are joined by a line of weights along which both know the same, training led from
one to the other without leaving the basin (linear mode connectivity, Frankle et al. 2020). Siddiqui
et al. (2025, arXiv:2505.22310) read this off unlearned models.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Victim

TO_FILTERED = "filtered"

ATTACK = Declaration(
    says="all weights moved by a share t of the way to the base, or to the filtered model",
    source="Siddiqui et al. 2025",
    strengths=(f"{TO_FILTERED}-t0.5", "t0.25", "t0.5", "t0.75"),
    pattern=rf"({TO_FILTERED}-)?t(0|1|0?\.[0-9]+)",
    reads=("base",),
)


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """W + t (W_other − W) in fp32: at t = 0 the model, at t = 1 the other one, exactly."""
    where, _, share = strength.rpartition("t")
    other, t = (victim.filtered if where else victim.base), float(share)
    if other is None:
        raise NotApplicable("there is no filtered model to move to")
    if victim.distance(other) == 0:
        raise NotApplicable(f"its weights are those of {other.model}")
    moved = ((name, (1 - t) * W + t * B) for name, W, B in victim.tensors(other))
    with victim.replaced(moved):
        yield Opened(victim.ask, None if where else 1 - (1 - t) ** 2)
