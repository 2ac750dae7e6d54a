"""Singular values of weight matrices: the largest to a stated error, all of them, subspaces, ranks.

The largest singular value comes from block Lanczos on the Gram operator of the smaller side (Golub,
Underwood 1977): the smaller side keeps the basis small, and a random block of four starts with a
negligible overlap with the leading direction far less often than a single vector does. Everything
that needs all singular values goes through the Gram matrix of the smaller side in fp64.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 4
# Up to this side the Gram matrix in fp64 is as fast as iterating, and exact.
EXACT_SIDE = 256
_CHUNK = 1 << 22  # entries converted to fp64 at a time: 32 MiB


class TopSingularValue(NamedTuple):
    """The largest singular value of a matrix."""

    value: float
    error: float
    """Bound on the relative distance to a singular value, from the residual; 0 where exact."""
    iterations: int
    """Products with W and its transpose; 0 where the Gram matrix gave the value."""


class TopSubspace(NamedTuple):
    """Leading singular subspace of one side."""

    basis: Tensor
    """[side, k], orthonormal columns in falling order of singular value, fp64 on the CPU."""
    singular_values: Tensor
    """[k], fp64."""


def top_singular_value(
    W: Tensor,
    tol: float = 1e-3,
    max_iterations: int = 200,
    seed: int = 42,
    name: str = "matrix",
) -> TopSingularValue:
    """Largest singular value of W [m, n], computed in W's dtype (at least fp32 for the basis).

    Stops when the residual bounds the relative error below `tol`: with a Ritz pair (θ, x) of WᵀW
    some eigenvalue lies within ‖WᵀWx − θx‖ of θ (Parlett 1998, theorem 4.5.1), so a singular value
    lies within half of that over θ, relatively, of √θ. Where `max_iterations` comes first, a
    RuntimeWarning names the matrix, and the error reached is returned. A zero matrix gives 0.
    """
    tall = W if W.shape[0] >= W.shape[1] else W.T
    if not bool(W.any()):
        return TopSingularValue(0.0, 0.0, 0)
    if tall.shape[1] <= EXACT_SIDE:
        return TopSingularValue(float(singular_values(W)[0]), 0.0, 0)
    # Tiny entries would underflow when they are squared.
    scale = float(W.abs().max()) if W.numel() <= _CHUNK else max(_part_max(p) for p in _parts(W))
    found = _block_lanczos(tall, scale, tol, max_iterations, seed)
    if found.error > tol:
        warnings.warn(
            f"{name}: after {found.iterations} iterations the largest singular value is known to "
            f"{found.error:.1e} only, --tol is {tol:.1e}; raise --max-iters",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


def _part_max(part: Tensor) -> float:
    return float(part.abs().max())


def _block_lanczos(
    tall: Tensor, scale: float, tol: float, max_iterations: int, seed: int
) -> TopSingularValue:
    """Rayleigh–Ritz on the block Krylov space of WᵀW, W = tall / scale [long, short]."""
    short = tall.shape[1]
    steps = min(max_iterations, short // BLOCK)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(short, BLOCK, generator=generator).to(tall.device)
    V = torch.empty(short, steps * BLOCK, device=tall.device)  # basis
    Z = torch.empty_like(V)  # WᵀW V
    T = torch.zeros(steps * BLOCK, steps * BLOCK, dtype=torch.float64)  # Vᵀ WᵀW V
    # Rounding of W and of the products to less than fp32 is not in the residual.
    floor = torch.finfo(tall.dtype).eps / 2 if tall.dtype.itemsize < 4 else 0.0
    block = start
    for step in range(steps):
        old, new = slice(0, step * BLOCK), slice(step * BLOCK, (step + 1) * BLOCK)
        upto = slice(0, new.stop)
        V[:, new] = _orthonormalised(block, V[:, old])
        Z[:, new] = _gram_product(tall, V[:, new], scale)
        T[upto, new] = (V[:, upto].T @ Z[:, new]).double().cpu()
        T[new, upto] = T[upto, new].T
        theta, y = _top_eigenpair(T[upto, upto])
        y = y.to(V)
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


def _gram_product(tall: Tensor, block: Tensor, scale: float) -> Tensor:
    """WᵀW block for W = tall / scale, in tall's dtype, returned in fp32."""
    # On a CPU a stored row is read several times faster along than across: the product that runs
    # over columns of what is stored is written with the block's transpose on the left.
    block = block.to(tall.dtype).contiguous()
    if tall.is_contiguous():
        product = _scaled(tall @ block, scale).to(tall.dtype)
        return _scaled((product.T @ tall).T, scale)
    product = _scaled((block.T @ tall.T).T, scale).to(tall.dtype)
    return _scaled(tall.T @ product.contiguous(), scale)


def _scaled(product: Tensor, scale: float) -> Tensor:
    return product.float() / scale


def _top_eigenpair(T: Tensor) -> tuple[float, Tensor]:
    values, vectors = torch.linalg.eigh((T + T.T) / 2)
    return float(values[-1]), vectors[:, -1]


# ── all singular values ───────────────────────────────────────────────────────────────────────────


def _parts(W: Tensor) -> tuple[Tensor, ...]:
    """Views of a few rows at a time."""
    return W.split(max(1, _CHUNK // max(1, W.shape[1])))


def gram(W: Tensor) -> Tensor:
    """WᵀW or WWᵀ, whichever is smaller, in fp64; accumulated over chunks of rows of the long side.

    On a device without fp64 (mps) the chunks are multiplied on the CPU.
    """
    tall = W if W.shape[0] >= W.shape[1] else W.T
    device = torch.device("cpu") if W.device.type == "mps" else W.device
    total = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=device)
    for part in _parts(tall):
        part = part.to(device).double()
        total.addmm_(part.T, part)
    return total


def singular_values(W: Tensor) -> Tensor:
    """All singular values of W [m, n] in falling order, [min(m, n)], fp64 on the CPU.

    Square roots of the Gram matrix's eigenvalues: those below 1e-8 of the largest are noise.
    """
    return torch.linalg.eigvalsh(gram(W)).clamp_min(0).sqrt().flip(0).cpu()


def top_subspace(W: Tensor, k: int, side: str) -> TopSubspace:
    """The k leading `left` or `right` singular vectors of W [m, n].

    Those of the smaller side are eigenvectors of its Gram matrix; the others are one product away
    and orthonormalised. Raises ValueError where k is beyond min(m, n) or the side is neither.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side {side!r} is neither 'left' nor 'right'")
    if not 1 <= k <= min(W.shape):
        raise ValueError(f"k = {k} singular vectors of a matrix of shape {tuple(W.shape)}")
    values, vectors = torch.linalg.eigh(gram(W))
    sigma = values.flip(0)[:k].clamp_min(0).sqrt()
    small = vectors.flip(1)[:, :k]
    tall, small_side = (W, "right") if W.shape[0] >= W.shape[1] else (W.T, "left")
    if side == small_side:
        return TopSubspace(small.cpu(), sigma.cpu())
    large = torch.cat([part.to(small.device).double() @ small for part in _parts(tall)])
    return TopSubspace(torch.linalg.qr(large)[0].cpu(), sigma.cpu())


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


def empirical_rank(W: Tensor, threshold: float = 0.99) -> int:
    """Singular values of W that hold `threshold` of its energy; 0 for a zero matrix."""
    return rank_for_share(singular_values(W), threshold)
