"""Singular values of weight matrices: the largest with an error bound, or all; ranks.

The largest comes from block Lanczos on the Gram operator of the smaller side (Golub, Underwood
1977): the smaller side keeps the basis small, and a random block of four nearly misses the leading
direction far less often than a single vector does. Everything that needs all singular values goes
through the Gram matrix of the smaller side in fp64.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model_diffs.models.checkpoints import chunks

BLOCK = 4
# Up to this side the Gram matrix in fp64 is as fast as iterating, and exact.
EXACT_SIDE = 256


class TopSingularValue(NamedTuple):
    """The largest singular value of a matrix."""

    value: float
    error: float
    """Bound on the relative distance to a singular value, from the residual; 0 where exact."""
    iterations: int
    """Products with W and its transpose; 0 where the Gram matrix gave the value."""


def top_singular_value(
    W: Tensor, tol: float, max_iterations: int, seed: int, name: str
) -> TopSingularValue:
    """Largest singular value of W [m, n], computed in W's dtype (at least fp32 for the basis).

    Stops when the residual bounds the relative error below `tol`: with a Ritz pair (θ, x) of WᵀW
    some eigenvalue lies within ‖WᵀWx − θx‖ of θ (Parlett 1998, theorem 4.5.1), so a singular value
    lies within half of that over θ, relatively, of √θ. Where `max_iterations` comes first, a
    RuntimeWarning names the matrix, and the error reached is returned. A zero matrix gives 0.
    """
    if not bool(W.any()):
        return TopSingularValue(0.0, 0.0, 0)
    if min(W.shape) <= EXACT_SIDE:
        return TopSingularValue(float(singular_values(W)[0]), 0.0, 0)
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
    block = torch.randn(short, BLOCK, generator=generator).to(W.device)
    V = torch.empty(short, steps * BLOCK, device=W.device)  # basis
    Z = torch.empty_like(V)  # AᵀA V
    T = torch.zeros(steps * BLOCK, steps * BLOCK, dtype=torch.float64)  # Vᵀ AᵀA V
    # Rounding of W and of the products to less than fp32 is not in the residual.
    floor = torch.finfo(W.dtype).eps / 2 if W.dtype.itemsize < 4 else 0.0
    for step in range(steps):
        old, new = slice(0, step * BLOCK), slice(step * BLOCK, (step + 1) * BLOCK)
        upto = slice(0, new.stop)
        V[:, new] = _orthonormalised(block, V[:, old])
        Z[:, new] = _gram_product(W, V[:, new], scale)
        T[upto, new] = (V[:, upto].T @ Z[:, new]).double().cpu()
        T[new, old] = T[old, new].T
        values, vectors = torch.linalg.eigh((T[upto, upto] + T[upto, upto].T) / 2)
        theta, y = float(values[-1]), vectors[:, -1].to(V)
        residual = torch.linalg.vector_norm(Z[:, upto] @ y - theta * (V[:, upto] @ y))
        error = float(residual) / (2 * theta) + floor
        if error - floor <= tol:
            break
        block = Z[:, new]
    return TopSingularValue(scale * theta**0.5, error, step + 1)


def _orthonormalised(block: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns that span `block` outside `basis`; twice, against rounding."""
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
        block = torch.linalg.qr(block)[0]
    return block


def _gram_product(W: Tensor, block: Tensor, scale: float) -> Tensor:
    """AᵀA block for A = W / scale, in W's dtype, returned in fp32."""
    # A CPU reads a stored row several times faster along than across: a product that runs over
    # columns of what is stored is written with the block's transpose on the left.
    block = block.to(W.dtype).contiguous()
    if W.is_contiguous():
        product = ((W @ block).float() / scale).to(W.dtype)
        return (product.T @ W).T.float() / scale
    product = ((block.T @ W.T).T.float() / scale).to(W.dtype)
    return (W.T @ product.contiguous()).float() / scale


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
    device = torch.device("cpu") if W.device.type == "mps" else W.device
    total = torch.zeros(long.shape[1], long.shape[1], dtype=torch.float64, device=device)
    for part in row_parts(long, device):
        total.addmm_(part.T, part)
    return total


def singular_values(W: Tensor) -> Tensor:
    """All singular values of W [m, n] in falling order, [min(m, n)], fp64 on the CPU.

    Square roots of the Gram matrix's eigenvalues: those below 1e-8 of the largest are noise.
    """
    return torch.linalg.eigvalsh(gram(W)).clamp_min(0).sqrt().flip(0).cpu()


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
