"""Random changes of the weights: what is fragile in a change goes before what training built.

Every matrix of the blocks gets independent Gaussian entries, scaled to a share s of its norm.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model_diffs.attacks.registry import Declaration, Range
from model_diffs.attacks.victim import Opened, Victim
from model_diffs.models.architectures import Matrix
from model_diffs.unlearning.losses import generator_of

ATTACK = Declaration(
    says="Gaussian noise of relative Frobenius norm s on every matrix of the blocks",
    source="",
    strengths=("s0.01", "s0.03", "s0.1", "s0.2", "s0.3"),
    pattern=r"s[0-9]*\.?[0-9]+",
    range=Range(0.003, 1.0, "s{:.4f}", logarithmic=True),
)


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """W + s ‖W‖ E / ‖E‖ with one draw of E per matrix, the same for every strength and model."""
    size = float(strength.removeprefix("s"))

    def noisy(matrix: Matrix, W: Tensor) -> Tensor:
        generator = generator_of(victim.seed, "noise attack", matrix.name)
        E = torch.randn(W.shape, generator=generator).to(W.device)
        return W + size * W.norm() * E / E.norm()

    with victim.replaced(victim.changed(noisy)):
        yield Opened(victim.ask)
