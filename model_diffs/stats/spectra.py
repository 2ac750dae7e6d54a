"""Singular values of weight matrices: the largest with an error bound, or all; ranks.

The largest comes from block Lanczos on the Gram operator of the smaller side (Golub, Underwood
1977) from a Gaussian block, and its error bound is an upper bound on σ₁ itself that is wrong with a
probability of at most 1e-9 (`_excludes`). Everything that needs all singular values goes through
the Gram matrix of the smaller side in fp64.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_diffs.models.checkpoints import chunks
from model_diffs.models.devices import wide_home

BLOCK = 8
# Up to this side the Gram matrix in fp64 is as fast as iterating, and exact.
EXACT_SIDE = 256
# Probability that a bound is wrong, over the Gaussian block.
FAILURE = 1e-9
# The norm of BLOCK Gaussians is smaller than this with less than that probability:
# P(χ² < t²) ≤ (t²/2)^(BLOCK/2) / Γ(BLOCK/2 + 1).
SMALLEST = math.sqrt(2) * (FAILURE * math.gamma(BLOCK / 2 + 1)) ** (1 / BLOCK)
# More than what products and bases in fp32 add to a residual, or to σ₁ (5e-6 at 4096 × 4096).
ROUNDING = 1e-5


class TopSingularValue(NamedTuple):
    """The largest singular value of a matrix."""

    value: float
    error: float
    """Bound on |σ₁ − value| / value; 0 where exact."""
    iterations: int
    """Products with W and its transpose; 0 where the Gram matrix gave the value."""


def top_singular_value(
    W: Tensor, tol: float, max_iterations: int, seed: int, name: str
) -> TopSingularValue:
    """Largest singular value of W [m, n], computed in fp32, or in W's dtype where that is wider.

    Stops when σ₁ is at most 1 + `tol` times the value found, except with probability `FAILURE`.
    Where `max_iterations` comes first, a RuntimeWarning names the matrix, and the error reached is
    returned. A tolerance that fp32 does not allow takes the Gram matrix. A zero matrix gives 0.
    """
    if not bool(W.any()):
        return TopSingularValue(0.0, 0.0, 0)
    if min(W.shape) <= EXACT_SIDE or tol < 10 * ROUNDING:
        return TopSingularValue(float(singular_values(W)[0]), 0.0, 0)
    if W.dtype.itemsize < 4:
        W = W.float()  # products rounded to bf16 would be wrong by more than the tolerance
    # Tiny entries would underflow when they are squared.
    scale = max(float(part.abs().max()) for part in chunks(W))
    found = _block_lanczos(tall(W), scale, tol, max_iterations, seed)
    if found.error > tol:
        warnings.warn(
            f"{name}: after {found.iterations} iterations the largest singular value is known to "
            f"{found.error:.1e} only, --tol is {tol:.1e}; raise --max-iters",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


def _block_lanczos(
    W: Tensor, scale: float, tol: float, max_iterations: int, seed: int
) -> TopSingularValue:
    """Rayleigh–Ritz on the block Krylov space of AᵀA, A = W / scale, of a tall W."""
    short = W.shape[1]
    steps = min(max_iterations, short // BLOCK)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(short, BLOCK, generator=generator).to(W.device)
    V = torch.empty(short, steps * BLOCK, device=W.device)  # basis
    T = torch.zeros(steps * BLOCK, steps * BLOCK, dtype=torch.float64)  # Vᵀ AᵀA V
    block, _ = _outside(start, V[:, :0])
    coordinates = (block.T @ start).cpu().double()
    error, check = tol, 1
    for step in range(1, steps + 1):
        old, new = slice(0, (step - 1) * BLOCK), slice((step - 1) * BLOCK, step * BLOCK)
        upto = slice(0, new.stop)
        V[:, new] = block
        product = _gram_product(W, block, scale)
        T[upto, new] = (V[:, upto].T @ product).cpu().double()
        T[new, old] = T[old, new].T
        block, outside = _outside(product, V[:, upto])
        if step in (check, steps):
            ritz = _ritz_pairs(T[upto, upto], outside.cpu().double(), coordinates)
            if ritz.residuals[-1] <= 2 * tol * ritz.values[-1] and _excludes(ritz, tol):
                break
            check = step + 1 + step // 10  # the decomposition of T is not free
    else:
        while not _excludes(ritz, error):
            error *= 2
    while _excludes(ritz, error / 2):
        error /= 2
    return TopSingularValue(scale * float(ritz.values[-1]) ** 0.5, error, step)


def _outside(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns Q that span `block` outside `basis`, and R: that part has R's norms."""
    block, R = torch.linalg.qr(block - basis @ (basis.T @ block))
    # Twice, against rounding.
    return torch.linalg.qr(block - basis @ (basis.T @ block))[0], R


def _gram_product(W: Tensor, block: Tensor, scale: float) -> Tensor:
    """AᵀA block for A = W / scale, in W's dtype, returned in fp32."""
    # A CPU reads a stored row several times faster along than across: a product that runs over
    # columns of what is stored is written with the block's transpose on the left.
    block = block.to(W.dtype).contiguous()
    if W.is_contiguous():
        product = (W @ block) / scale
        return (product.T @ W).T.float() / scale
    product = (block.T @ W.T).T / scale
    return (W.T @ product.contiguous()).float() / scale


# ── the bound on σ₁ ───────────────────────────────────────────────────────────────────────────────


class _Ritz(NamedTuple):
    """Ritz pairs (θᵢ, xᵢ) of G = AᵀA in the block Krylov space of Ω, in fp64."""

    values: np.ndarray
    """θ [pairs], rising."""
    residuals: np.ndarray
    """‖Gxᵢ − θᵢxᵢ‖ [pairs], and what rounding may hide."""
    start: np.ndarray
    """xᵢᵀΩ [pairs, BLOCK]."""


def _ritz_pairs(T: Tensor, outside: Tensor, coordinates: Tensor) -> _Ritz:
    """From T = VᵀGV, the part of G V's last block outside V, and Ω in V's first block."""
    values, vectors = torch.linalg.eigh((T + T.T) / 2)
    residuals = torch.linalg.vector_norm(outside @ vectors[-BLOCK:], dim=0) + ROUNDING * values[-1]
    return _Ritz(values.numpy(), residuals.numpy(), (vectors[:BLOCK].T @ coordinates).numpy())


def _excludes(ritz: _Ritz, error: float) -> bool:
    """Whether no singular value of A is above (1 + error) √θ, θ the largest Ritz value.

    Let Gu = λu with ‖u‖ = 1 and λ ≥ Λ = (1 + error)² θ. Then u is almost orthogonal to each Ritz
    vector with a small residual, |uᵀxᵢ| ≤ ηᵢ = ‖Gxᵢ − θᵢxᵢ‖ / (Λ − θᵢ), and Σ (uᵀxᵢ)² ≤ 1. For a
    polynomial p of a degree less than the number of steps, p(G)Ω lies in the Krylov space, so

        p(λ) uᵀΩ = Σ uᵀxᵢ p(θᵢ) xᵢᵀΩ,
        ‖uᵀΩ‖ ≤ ‖[p(θᵢ) xᵢᵀΩ]ᵢ‖₂ over large ηᵢ + Σ ηᵢ |p(θᵢ)| ‖xᵢᵀΩ‖ over small ηᵢ if p(Λ) = 1,

    where p rises beyond Λ because its zeros are between the Ritz values. u does not depend on Ω, so
    uᵀΩ is Gaussian: where there is such a u, the right side is below `SMALLEST` with a probability
    of at most `FAILURE`. For one vector: van Dorsselaer, Hochstenbach, van der Vorst 2000.
    """
    theta = ritz.values
    bound = float(theta[-1]) * (1 + error - ROUNDING) ** 2
    if bound <= theta[-1]:
        return False
    eta = ritz.residuals / (bound - theta)
    small = eta < 0.1
    lengths = np.linalg.norm(ritz.start, axis=1)
    weights = (np.where(small, eta, 1.0) * lengths) ** 2
    p = _small_polynomial(theta, weights, bound, len(theta) // BLOCK)
    large_part = np.linalg.norm((p * ~small)[:, None] * ritz.start, 2)
    return bool(large_part + (eta * abs(p) * lengths)[small].sum() < SMALLEST)


def _small_polynomial(nodes: np.ndarray, weights: np.ndarray, at: float, terms: int) -> np.ndarray:
    """Values at `nodes` of the p with Σ w p² smallest among those with `terms` terms, p(at) = 1.

    It is Σ qⱼ(at) qⱼ / Σ qⱼ(at)² for the orthonormal polynomials q of the nodes with these weights
    (Szegő 1939, theorem 3.1.3), by their three-term recurrence. Its zeros are between the nodes.
    """
    q, before = np.full_like(nodes, weights.sum() ** -0.5), np.zeros_like(nodes)
    q_at, before_at, beta = float(q[0]), 0.0, 0.0
    p, p_at = q * q_at, q_at * q_at
    for _ in range(terms - 1):
        alpha = float(weights @ (q * q * nodes))
        after = (nodes - alpha) * q - beta * before
        after_at = (at - alpha) * q_at - beta * before_at
        beta = math.sqrt(weights @ (after * after))
        if after_at >= 1e100 * beta:  # as good as infinite
            break
        q, before, q_at, before_at = after / beta, q, after_at / beta, q_at
        p += q_at * q
        p_at += q_at * q_at
    return p / p_at


# ── all singular values ───────────────────────────────────────────────────────────────────────────


def tall(W: Tensor) -> Tensor:
    """W or its transpose, whichever has at least as many rows as columns; a view."""
    return W if W.shape[0] >= W.shape[1] else W.T


def row_parts(W: Tensor, device: torch.device) -> Iterator[Tensor]:
    """A few rows of W [m, n] at a time, as fp64 on `device`."""
    for part in chunks(W):
        yield part.to(device).double()


def gram(W: Tensor) -> Tensor:
    """WᵀW or WWᵀ, whichever is smaller, in fp64, accumulated over rows of the long side.

    On a device without fp64 (mps) the parts are multiplied on the CPU.
    """
    long = tall(W)
    device = wide_home(W.device)
    total = torch.zeros(long.shape[1], long.shape[1], dtype=torch.float64, device=device)
    if device.type == "cpu":
        return _lower_gram(row_parts(long, device), total)
    for part in row_parts(long, device):
        total.addmm_(part.T, part)
    return total


def _lower_gram(parts: Iterable[Tensor], total: Tensor) -> Tensor:
    """Σ partᵀ part by one triangle: half the work of a product."""
    from scipy.linalg.blas import dsyrk

    lower = np.asfortranarray(total.numpy())
    for part in parts:
        rows = part.numpy()
        given = (rows, 1) if rows.flags.f_contiguous else (rows.T, 0)
        lower = dsyrk(1.0, given[0], trans=given[1], beta=1.0, c=lower, lower=1, overwrite_c=1)
    found = torch.from_numpy(lower)
    return found.tril() + found.tril(-1).T


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix in fp64, rising."""
    if matrix.is_cuda:
        return torch.linalg.eigvalsh(matrix)
    return torch.from_numpy(np.linalg.eigvalsh(matrix.numpy()))  # twice as fast here as torch's


def leading_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues of a symmetric matrix in fp64, falling, and their vectors."""
    if matrix.is_cuda or 2 * count >= len(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]
    import scipy.linalg

    ends = len(matrix) - count, len(matrix) - 1
    values, vectors = scipy.linalg.eigh(matrix.numpy(), subset_by_index=ends, driver="evr")
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors[:, ::-1].copy())


def singular_values(W: Tensor) -> Tensor:
    """All singular values of W [m, n] in falling order, [min(m, n)], fp64 on the CPU.

    Square roots of the Gram matrix's eigenvalues: those below 1e-8 of the largest are noise.
    """
    return eigenvalues(gram(W)).clamp_min(0).sqrt().flip(0).cpu()


# ── ranks ─────────────────────────────────────────────────────────────────────────────────────────


def stable_rank(frobenius: float, spectral: float) -> float | None:
    """‖W‖²_F / σ₁² (Rudelson, Vershynin 2007), at least 1; None for a zero matrix."""
    if frobenius == 0 or spectral == 0:
        return None
    return max(1.0, (frobenius / spectral) ** 2)


def rank_for_share(sigma: Tensor, share: float) -> int:
    """Fewest leading singular values whose squares reach `share` of the total; 0 for a zero matrix.

    `sigma` [k] in falling order.
    """
    energy = sigma.double().square().cumsum(0)
    if energy[-1] == 0:
        return 0
    return min(int((energy < share * energy[-1]).sum()) + 1, len(sigma))
