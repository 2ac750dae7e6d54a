"""The spectrum of a weight change, and how far it turns the singular subspaces of the matrix.

Every singular value comes from the Gram matrix of the smaller side in fp64. One eigenvalue
decomposition per matrix, of as many vectors as are needed, gives both singular subspaces: that of
the smaller side directly, that of the larger side by one product.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_diffs.models.architectures import MLP_COMPONENTS, Matrix
from model_diffs.models.checkpoints import Checkpoint, lockstep
from model_diffs.models.devices import gather_over_processes, share
from model_diffs.stats.spectra import (
    gram,
    leading_eigenvectors,
    rank_for_share,
    row_parts,
    singular_values,
    tall,
)

Row = dict[str, Any]
SHARE = 0.99
SUMMARISED = (
    *("effective_rank", "top10_variance_ratio", "singular_value_decay", "singular_value_ratio"),
    *("subspace_alignment", "alignment_right", "random_alignment", "random_alignment_right"),
    *("grassmann_distance", "grassmann_right"),
)

# ── which matrices ────────────────────────────────────────────────────────────────────────────────


def sample_matrices(matrices: Sequence[Matrix], count: int, seed: int) -> list[Matrix]:
    """`count` of the matrices (all where 0, or where there are no more), in their order.

    Drawn one by one from the component drawn least so far, then from the layer drawn least so far,
    ties broken by the seed: components, and then layers, differ by at most one draw as long as
    they have matrices left.
    """
    if count == 0 or count >= len(matrices):
        return list(matrices)
    left = np.random.default_rng(seed).permutation(len(matrices)).tolist()
    drawn: Counter[str | int] = Counter()  # of each component and of each layer
    chosen = []
    for _ in range(count):
        i = min(left, key=lambda i: (drawn[matrices[i].component], drawn[matrices[i].layer]))
        left.remove(i)
        chosen.append(i)
        drawn.update((matrices[i].component, matrices[i].layer))
    return [matrices[i] for i in sorted(chosen)]


def mlp_matrices(checkpoint: Checkpoint) -> list[Matrix]:
    """The in, gate and out matrices of every MLP, each expert's included, routers not."""
    return [m for m in checkpoint.matrices() if m.component in MLP_COMPONENTS]


def measure_changes(
    base: Checkpoint,
    changed: Sequence[Checkpoint],
    matrices: Sequence[Matrix],
    device: torch.device,
    measure: "Callable[[Matrix, Decomposition, Tensor, Tensor], Row]",
    leading: int | None = None,
) -> list[list[Row]]:
    """For each changed model a row per matrix: `measure(matrix, decomposition of W_A, W_B, dW)`,
    with the `leading` singular vectors of W_A alone, or all.

    Matrices are [out, in] fp32 on `device`; the base's are read and decomposed once. Several
    processes share out the matrices and all return all rows. Raises
    BadInput, naming the tensor, where checkpoints cannot be subtracted or hold NaN or Inf.
    """
    rows: list[list[Row]] = [[] for _ in changed]
    for matrix, stored_a, others in lockstep(base, changed, share(matrices)):
        W_A = stored_a.to(device, torch.float32)
        found = decompose(W_A, leading)
        for out, (_, stored_b) in zip(rows, others, strict=True):
            W_B = stored_b.to(device, torch.float32)
            out.append(measure(matrix, found, W_B, W_B - W_A))
    return [gather_over_processes(out) for out in rows]


# ── one matrix ────────────────────────────────────────────────────────────────────────────────────


class Decomposition(NamedTuple):
    """Singular values of W [m, n] and the singular vectors of its smaller side."""

    W: Tensor
    sigma: Tensor
    """[k], falling, fp64; k is min(m, n) or fewer."""
    small: Tensor
    """[min(m, n), k], columns in the order of sigma, fp64."""

    @property
    def rank(self) -> int:
        """Numerical rank, at most k."""
        return numerical_rank(self.sigma, self.W.shape)


def decompose(
    W: Tensor, leading: int | None = None, squares: Tensor | None = None
) -> Decomposition:
    """Singular values of W [m, n] and one side's vectors, the `leading` ones or all, by one
    decomposition of its Gram matrix `squares`, which is formed unless given."""
    count = min(W.shape) if leading is None else min(leading, *W.shape)
    squares = gram(W) if squares is None else squares
    values, vectors = leading_eigenvectors(squares, count)
    return Decomposition(W, values.clamp_min(0).sqrt(), vectors)


def numerical_rank(sigma: Tensor, shape: Sequence[int]) -> int:
    """Singular values above max(m, n)·ε·σ₁, ε that of fp32: the rest is rounding."""
    threshold = max(shape) * torch.finfo(torch.float32).eps * sigma[0]
    return int((sigma > threshold).sum())


def leading_bases(found: Decomposition, k: int) -> tuple[Tensor, Tensor]:
    """Left [m, k] and right [n, k] leading singular subspaces, orthonormal columns in fp64.

    k is at most the numerical rank. The larger side is W times the smaller side's vectors,
    orthonormalised.
    """
    small = found.small[:, :k]
    parts = row_parts(tall(found.W), small.device)
    large = torch.linalg.qr(torch.cat([part @ small for part in parts]))[0]
    return (large, small) if found.W.shape[0] >= found.W.shape[1] else (small, large)


def principal_angles(Q_1: Tensor, Q_2: Tensor) -> Tensor:
    """Angles in radians, rising, between the subspaces with these orthonormal bases [side, k].

    Cosines are the singular values of Q₁ᵀQ₂. Angles below 45° come from the sines, the singular
    values of Q₂ − Q₁Q₁ᵀQ₂, since a cosine near one has lost them (Björck, Golub 1973).
    """
    inner = Q_1.T @ Q_2
    cosines = torch.linalg.svdvals(inner).clamp(0, 1)
    sines = torch.linalg.svdvals(Q_2 - Q_1 @ inner).flip(0).clamp(0, 1)
    return torch.where(cosines.square() < 0.5, cosines.arccos(), sines.arcsin())


@functools.cache
def random_alignment(side: int, k: int, seed: int) -> float:
    """Mean cosine of the principal angles between random k-dimensional subspaces of R^side.

    Mean over 16 pairs. One subspace of each pair is the span of the first k axes, which does not
    change the distribution of the angles.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(side, k, generator=generator, dtype=torch.float64) for _ in range(16)]
    means = [torch.linalg.svdvals(torch.linalg.qr(one)[0][:k]).mean() for one in draws]
    return float(torch.stack(means).mean())


# ── step 7 ────────────────────────────────────────────────────────────────────────────────────────


def subspace_row(
    matrix: Matrix, base: Decomposition, W_B: Tensor, dW: Tensor, k: int, seed: int
) -> Row:
    """One line of null_space_results.csv: spectrum of dW, and how far the leading subspaces turned.

    `k` is at most both numerical ranks. None where a quantity is undefined: of the spectrum where
    dW is zero (σ₁₁/σ₁ also where it has fewer than 11 singular values), of subspaces where k is 0.
    """
    k, first = min(k, base.rank), float(base.sigma[0])
    if bool(dW.any()):
        other, sigma = decompose(W_B, max(k, 1)), singular_values(dW)
        k, last = min(k, other.rank), float(other.sigma[0])
        sides = zip(leading_bases(base, k), leading_bases(other, k), strict=True)
        left, right = (principal_angles(Q_A, Q_B) for Q_A, Q_B in sides)
    else:  # the same matrix: its subspaces have not turned
        sigma, last = torch.zeros(min(dW.shape), dtype=torch.float64), first
        left = right = torch.zeros(k)
    top, energy = float(sigma[0]), sigma.square()
    return {
        "name": matrix.name,
        "component": matrix.component,
        "layer": matrix.layer,
        "effective_rank": rank_for_share(sigma, SHARE) if top else None,
        "top10_variance_ratio": float(energy[:10].sum() / energy.sum()) if top else None,
        "max_singular_value": top,
        "singular_value_decay": float(sigma[10]) / top if top and len(sigma) > 10 else None,
        "subspace_alignment": float(left.cos().mean()) if k else None,
        "grassmann_distance": float(left.norm()) if k else None,
        "singular_value_ratio": last / first if first else None,
        "alignment_right": float(right.cos().mean()) if k else None,
        "grassmann_right": float(right.norm()) if k else None,
        "random_alignment": random_alignment(matrix.shape[0], k, seed) if k else None,
        "random_alignment_right": random_alignment(matrix.shape[1], k, seed) if k else None,
        "k": k,
        "shape0": matrix.shape[0],
        "shape1": matrix.shape[1],
    }
