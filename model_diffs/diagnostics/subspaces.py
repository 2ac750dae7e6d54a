"""The spectrum of a weight change, and how far it turns the subspaces of the matrix.

Every singular value comes from the Gram matrix of the smaller side in fp64. One eigenvalue
decomposition per matrix gives both of its singular subspaces: that of the smaller side directly,
that of the larger side through one product.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint, lockstep
from model_diffs.stats import spectra

MLP_COMPONENTS = ("mlp_in", "mlp_gate", "mlp_out")
RANDOM_PAIRS = 16
SHARE = 0.99
_CHUNK = 1 << 22  # entries converted to fp64 at a time: 32 MiB

SUMMARISED = (
    *("effective_rank", "top10_variance_ratio", "singular_value_decay", "singular_value_ratio"),
    *("subspace_alignment", "alignment_right", "random_alignment", "random_alignment_right"),
    *("grassmann_distance", "grassmann_right"),
)

# ── which matrices ────────────────────────────────────────────────────────────────────────────────


def sample_matrices(matrices: Sequence[Matrix], count: int, seed: int) -> list[Matrix]:
    """`count` of the matrices (all of them where 0, or where there are no more), in their order.

    Drawn one by one from the component drawn least so far, in the layer drawn least so far, ties
    broken by the seed: components come out equal to within one as far as they have matrices left,
    and so do layers.
    """
    if count == 0 or count >= len(matrices):
        return list(matrices)
    order = np.random.default_rng(seed).permutation(len(matrices))
    left = [int(i) for i in order]
    components = dict.fromkeys((m.component for m in matrices), 0)
    layers = dict.fromkeys((m.layer for m in matrices), 0)

    def drawn(i: int) -> tuple[int, int]:
        return components[matrices[i].component], layers[matrices[i].layer]

    chosen = []
    for _ in range(count):
        i = min(left, key=drawn)
        left.remove(i)
        chosen.append(i)
        components[matrices[i].component] += 1
        layers[matrices[i].layer] += 1
    return [matrices[i] for i in sorted(chosen)]


def mlp_matrices(checkpoint: Checkpoint) -> list[Matrix]:
    """The in, gate and out matrices of every MLP, each expert's included, routers not."""
    return [m for m in checkpoint.matrices() if m.component in MLP_COMPONENTS]


# ── one matrix ────────────────────────────────────────────────────────────────────────────────────


class Decomposition(NamedTuple):
    """Singular values of W [m, n] and the singular vectors of its smaller side."""

    W: Tensor
    sigma: Tensor
    """[min(m, n)], falling, fp64."""
    small: Tensor
    """[min(m, n), min(m, n)], columns in the order of sigma, fp64."""

    @property
    def rank(self) -> int:
        """Numerical rank."""
        return numerical_rank(self.sigma, self.W.shape)


class Bases(NamedTuple):
    """Leading singular subspaces, orthonormal columns, fp64."""

    left: Tensor
    """[m, k]"""
    right: Tensor
    """[n, k]"""


def decompose(W: Tensor) -> Decomposition:
    """All singular values of W [m, n] and one side's vectors, by one decomposition of its Gram."""
    values, vectors = torch.linalg.eigh(spectra.gram(W))
    return Decomposition(W, values.flip(0).clamp_min(0).sqrt(), vectors.flip(1))


def numerical_rank(sigma: Tensor, shape: Sequence[int]) -> int:
    """Singular values above max(m, n)·ε·σ₁, ε that of fp32: the rest is rounding."""
    threshold = max(shape) * torch.finfo(torch.float32).eps * sigma[0]
    return int((sigma > threshold).sum())


def tall(W: Tensor) -> Tensor:
    """W or its transpose, whichever has at least as many rows as columns; a view."""
    return W if W.shape[0] >= W.shape[1] else W.T


def row_parts(W: Tensor, device: torch.device) -> Iterator[Tensor]:
    """A few rows of W [m, n] at a time, as fp64 on `device`."""
    for part in W.split(max(1, _CHUNK // W.shape[1])):
        yield part.to(device).double()


def leading_bases(found: Decomposition, k: int) -> Bases:
    """Both leading subspaces of dimension k (at most the numerical rank).

    The larger side is W times the smaller side's vectors, orthonormalised.
    """
    small = found.small[:, :k]
    parts = row_parts(tall(found.W), small.device)
    large = torch.linalg.qr(torch.cat([part @ small for part in parts]))[0]
    return Bases(large, small) if found.W.shape[0] >= found.W.shape[1] else Bases(small, large)


def principal_angles(Q_1: Tensor, Q_2: Tensor) -> Tensor:
    """Angles in radians, rising, between the subspaces with these orthonormal bases [side, k].

    Cosines are the singular values of Q₁ᵀQ₂; small angles are taken from the sines, the singular
    values of Q₂ − Q₁Q₁ᵀQ₂, since cosines near one have lost them (Björck, Golub 1973).
    """
    inner = Q_1.T @ Q_2
    cosines = torch.linalg.svdvals(inner).clamp(0, 1)
    sines = torch.linalg.svdvals(Q_2 - Q_1 @ inner).flip(0).clamp(0, 1)
    return torch.where(cosines.square() < 0.5, cosines.arccos(), sines.arcsin())


@functools.cache
def random_alignment(side: int, k: int, seed: int) -> float:
    """Mean cosine of the principal angles between random k-dimensional subspaces of R^side.

    Mean over 16 pairs. One subspace of each pair is turned onto the first k axes, which changes
    neither the angles nor their distribution.
    """
    generator = torch.Generator().manual_seed(seed)
    means = [
        torch.linalg.svdvals(
            torch.linalg.qr(
                torch.randn(side, k, generator=generator, dtype=torch.float64),
            )[0][:k]
        ).mean()
        for _ in range(RANDOM_PAIRS)
    ]
    return float(torch.stack(means).mean())


# ── step 7 ────────────────────────────────────────────────────────────────────────────────────────


class SubspaceRow(NamedTuple):
    """One matrix of null_space_results.csv; None where a quantity has no meaning."""

    name: str
    component: str
    layer: int
    effective_rank: int | None
    """Singular values of dW for 99 % of its energy; None where dW is zero."""
    top10_variance_ratio: float | None
    max_singular_value: float
    singular_value_decay: float | None
    """σ₁₁/σ₁ of dW; None where dW is zero or has fewer than 11 singular values."""
    subspace_alignment: float | None
    grassmann_distance: float | None
    singular_value_ratio: float | None
    alignment_right: float | None
    grassmann_right: float | None
    random_alignment: float | None
    random_alignment_right: float | None
    k: int
    """Dimension of the subspaces: --k, or the numerical rank where that is smaller."""
    shape0: int
    shape1: int


class BaseSubspaces(NamedTuple):
    """What step 7 needs of a matrix of the base."""

    found: Decomposition
    k: int
    bases: Bases


def prepare_subspaces(W_A: Tensor, k: int) -> BaseSubspaces:
    """Decomposition of W_A with its leading subspaces of dimension min(k, rank)."""
    found = decompose(W_A)
    k = min(k, found.rank)
    return BaseSubspaces(found, k, leading_bases(found, k))


class _Turn(NamedTuple):
    left: Tensor
    right: Tensor
    k: int
    sigma_ratio: float | None


def _turn(base: BaseSubspaces, W_B: Tensor) -> _Turn:
    """Principal angles of both sides between the leading subspaces of W_A and W_B."""
    other = decompose(W_B)
    k = min(base.k, other.rank)
    bases = leading_bases(other, k)
    first = float(base.found.sigma[0])
    return _Turn(
        principal_angles(base.bases.left[:, :k], bases.left),
        principal_angles(base.bases.right[:, :k], bases.right),
        k,
        float(other.sigma[0]) / first if first else None,
    )


def subspace_row(
    matrix: Matrix, base: BaseSubspaces, W_B: Tensor, dW: Tensor, seed: int
) -> SubspaceRow:
    """Spectrum of dW, and how far the leading subspaces turned from W_A to W_B."""
    if bool(dW.any()):
        turn = _turn(base, W_B)
        sigma = spectra.singular_values(dW)
    else:  # the same matrix: its subspaces have not turned
        still = torch.zeros(base.k)
        turn = _Turn(still, still, base.k, 1.0 if base.k else None)
        sigma = torch.zeros(min(dW.shape), dtype=torch.float64)
    top, k = float(sigma[0]), turn.k
    energy = sigma.square()
    return SubspaceRow(
        name=matrix.name,
        component=matrix.component,
        layer=matrix.layer,
        effective_rank=spectra.rank_for_share(sigma, SHARE) if top else None,
        top10_variance_ratio=float(energy[:10].sum() / energy.sum()) if top else None,
        max_singular_value=top,
        singular_value_decay=float(sigma[10]) / top if top and len(sigma) > 10 else None,
        subspace_alignment=float(turn.left.cos().mean()) if k else None,
        grassmann_distance=float(turn.left.norm()) if k else None,
        singular_value_ratio=turn.sigma_ratio,
        alignment_right=float(turn.right.cos().mean()) if k else None,
        grassmann_right=float(turn.right.norm()) if k else None,
        random_alignment=random_alignment(matrix.shape[0], k, seed) if k else None,
        random_alignment_right=random_alignment(matrix.shape[1], k, seed) if k else None,
        k=k,
        shape0=matrix.shape[0],
        shape1=matrix.shape[1],
    )


def compare(
    base: Checkpoint,
    changed: Sequence[Checkpoint],
    matrices: Sequence[Matrix],
    k: int,
    seed: int,
    device: torch.device,
) -> list[list[SubspaceRow]]:
    """Rows of null_space_results.csv for each changed model; the base is read once.

    Raises BadInput, naming the tensor, where checkpoints cannot be subtracted or hold NaN or Inf.
    """
    rows: list[list[SubspaceRow]] = [[] for _ in changed]
    for matrix, stored, others in lockstep(base, changed, matrices):
        W_A = stored.to(device, torch.float32)
        prepared = prepare_subspaces(W_A, k)
        for out, (_, stored_b) in zip(rows, others, strict=True):
            W_B = stored_b.to(device, torch.float32)
            out.append(subspace_row(matrix, prepared, W_B, W_B - W_A, seed))
    return rows
