"""The norm of a model's Jacobian around texts, of the states and of the logits in one search.

J = ∂f/∂x is used through its products alone. f(x) are states; the logits of a linear head W are
W f(x), so their Jacobian is W J, and its norm the largest ‖J v‖ in the metric WᵀW. Both are sought
in one space of vectors v and images J v. Texts of a batch do not interact: one product serves all.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_diffs.models.devices import wide

Function = Callable[[Tensor], Tensor]
"""`[B, T, d]` → `[B, T, e]`, each text by itself."""


class JacobianNorm(NamedTuple):
    """Largest singular value of the Jacobian per text `[B]`, over counted tokens on both sides."""

    value: Tensor
    """A lower bound that the iterations raise."""
    iterations: Tensor
    """Products with Jᵀ, each after one with J."""
    converged: Tensor
    """bool"""


class Products(NamedTuple):
    """Products with a Jacobian whose rows and columns are the counted tokens'."""

    push: Function
    """v ↦ J v."""
    pull: Function
    """u ↦ Jᵀu."""
    gradient: Function
    """The same over all tokens: of a function of f(x), from its gradient there."""
    output: Tensor
    """f(x)."""


def products(f: Function, x: Tensor, counted: Tensor) -> Products:
    """Products with ∂f/∂x at x.

    Jᵀu is a backward pass, and Jv the derivative of Jᵀu with respect to u: the forward pass is run
    once and kept, so that each costs one pass. Forward-mode derivatives run it again each time.
    """
    mask = counted[..., None].to(x.dtype)
    leaf = x.detach().requires_grad_()
    output = f(leaf)
    u = torch.zeros_like(output, requires_grad=True)
    (pulled,) = torch.autograd.grad(output, leaf, u, create_graph=True)  # Jᵀu, linear in u

    def push(v: Tensor) -> Tensor:
        given = v.to(x.dtype) * mask
        return torch.autograd.grad(pulled, u, given, retain_graph=True)[0] * mask

    def gradient(u: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaf, u.to(output.dtype), retain_graph=True)[0]

    def pull(u: Tensor) -> Tensor:
        return gradient(u.to(output.dtype) * mask) * mask

    return Products(push, pull, gradient, output.detach())


class _Space:
    """Orthonormal vectors of each text and their images, `[B, T, d]` and `[B, T, e]` fp32."""

    def __init__(self, push: Function) -> None:
        self.push = push
        self.basis: list[Tensor] = []
        self.images: list[Tensor] = []

    def extend(self, direction: Tensor) -> None:
        """Add what is orthogonal to the basis: zero where the direction lies in it, or is zero.

        Orthogonalised twice, against rounding.
        """
        v = direction.float()
        size = torch.linalg.vector_norm(v, dim=(1, 2))
        for _ in range(2):
            for q in self.basis:
                v = v - (q * v).sum((1, 2))[:, None, None] * q
        length = torch.linalg.vector_norm(v, dim=(1, 2))
        divisor = torch.where(length > 1e-6 * size, length, 0.0)[:, None, None]
        v = torch.where(divisor > 0, v / divisor, 0.0).to(direction.dtype)
        self.basis.append(v.float())
        self.images.append(self.push(v).float())

    def best(self, metric: Function) -> tuple[np.ndarray, Tensor]:
        """The largest ‖J v‖² of a unit v in the space, `[B]`, and that image J v."""
        images = torch.stack(self.images, 1).flatten(2)
        measured = torch.stack([metric(one) for one in self.images], 1).flatten(2)
        gram = wide(images @ measured.mT).cpu().numpy()
        values, vectors = np.linalg.eigh((gram + gram.swapaxes(1, 2)) / 2)
        weights = torch.from_numpy(vectors[:, :, -1]).float().to(images.device)
        image = (weights[:, None] @ images)[:, 0].view_as(self.images[0])
        return values[:, -1].clip(0), image


def jacobian_norms(
    of: Products,
    start: Tensor,
    metrics: Sequence[Function],
    tolerance: float,
    max_iterations: int,
) -> list[JacobianNorm]:
    """σ₁ of the Jacobian in each metric u ↦ M u of its images, by Rayleigh–Ritz in a growing space.

    JᵀM`start` is the first vector. The image u of the best v so far, pulled back, gives the value
    ‖JᵀMu‖ / √(uᵀMu), which is at most σ₁, and the next vector: for a single metric the values of
    Golub and Kahan's bidiagonalisation (1965). A later metric also has the vectors of the earlier
    ones; its own first vector keeps it from settling on another metric's direction. A text has
    converged when a step changes its value by at most `tolerance`, relatively, and by less than
    half of what the step before did, so that further steps would add no more than this one; or when
    two successive steps change it by at most `tolerance`. It is then left as it is, so that the
    other texts of its batch do not matter to it. Two fp32 arrays of x's size are kept per step.
    """
    space = _Space(of.push)
    return [_norm(of, space, start, metric, tolerance, max_iterations) for metric in metrics]


def _norm(
    of: Products,
    space: _Space,
    start: Tensor,
    metric: Function,
    tolerance: float,
    max_iterations: int,
) -> JacobianNorm:
    texts = len(start)
    values, iterations, quiet = np.zeros(texts), np.zeros(texts, int), np.zeros(texts, int)
    before, fresh = np.zeros(texts), not space.basis
    space.extend(of.pull(metric(start)))
    for step in range(max_iterations):
        squared, image = space.best(metric)
        pulled = of.pull(metric(image))
        length = wide(torch.linalg.vector_norm(pulled.float(), dim=(1, 2))).cpu().numpy()
        found = np.divide(length, np.sqrt(squared), out=np.zeros(texts), where=squared > 0)
        running = quiet < 2
        iterations += running
        change = np.abs(found - values)
        closing = np.where(change < before / 2, 2, quiet + 1)
        quiet = np.where(running, np.where(change <= tolerance * found, closing, 0), quiet)
        values = np.where(running, found, values)
        before = 0 * change if fresh and step == 0 else change  # a first value is no change
        if (quiet == 2).all():
            break
        going_on = torch.from_numpy(quiet < 2).to(pulled.device)[:, None, None]
        space.extend(torch.where(going_on, pulled, 0.0))
    return JacobianNorm(*(torch.from_numpy(one) for one in (values, iterations, quiet == 2)))
