"""How fast are steps 7 and 10 beside full singular value decompositions of the same matrices?

Both compute, in one run and from the same W_A and W_B: step 7 the spectrum of dW and the angles of
both leading subspaces, step 10 the ranks and the energy of dW inside W_A's subspaces. The reference
takes torch.linalg.svd (LAPACK, fp32, reduced) of W_A, W_B and dW.

    uv run benchmarks/subspaces.py
    uv run benchmarks/subspaces.py --shape 768 768 --matrices 3
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model_diffs import mlp_nullspace, spectra, subspaces
from model_diffs.architectures import Matrix

K, THRESHOLD = 20, 0.99


class Found(NamedTuple):
    """What both ways must agree on."""

    ranks: tuple[int, ...]
    shares: tuple[float, ...]


def pair(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """A matrix with a falling spectrum, and the same with a change of moderate rank."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    W = torch.randn(m, n, generator=generator) * torch.arange(1, n + 1).float() ** -0.3
    left, right = (torch.randn(side, 64, generator=generator) for side in shape)
    return W, W + 0.002 * left @ right.T + 0.01 * torch.randn(m, n, generator=generator)


def step_7(W_A: Tensor, W_B: Tensor) -> Found:
    """As null_space_analysis.py."""
    matrix = Matrix("W", "W", 0, "mlp", "mlp_in", (W_A.shape[0], W_A.shape[1]))
    base = subspaces.prepare_subspaces(W_A, K)
    row = subspaces.subspace_row(matrix, base, W_B, W_B - W_A, 42)
    assert row.effective_rank and row.subspace_alignment and row.alignment_right
    return Found((row.effective_rank,), (row.subspace_alignment, row.alignment_right))


def step_7_reference(W_A: Tensor, W_B: Tensor) -> Found:
    """The same through full decompositions."""
    (U_A, _, V_A), (U_B, _, V_B) = torch.linalg.svd(W_A, False), torch.linalg.svd(W_B, False)
    sigma = torch.linalg.svd(W_B - W_A, False)[1]
    left = torch.linalg.svdvals(U_A[:, :K].T @ U_B[:, :K]).mean()
    right = torch.linalg.svdvals(V_A[:K] @ V_B[:K].T).mean()
    return Found((spectra.rank_for_share(sigma, THRESHOLD),), (float(left), float(right)))


def step_10(W_A: Tensor, W_B: Tensor) -> Found:
    """As mlp_nullspace_alignment.py."""
    matrix = Matrix("W", "W", 0, "mlp", "mlp_in", (W_A.shape[0], W_A.shape[1]))
    base = mlp_nullspace.prepare_space(W_A, THRESHOLD)
    row = mlp_nullspace.alignment_row(matrix, base, W_B, W_B - W_A, THRESHOLD)
    assert row.colspace_energy is not None and row.rowspace_energy is not None
    ranks = (row.original_eff_rank, row.updated_eff_rank)
    return Found(ranks, (row.colspace_energy, row.rowspace_energy))


def step_10_reference(W_A: Tensor, W_B: Tensor) -> Found:
    """The same through full decompositions."""
    U, sigma_A, V = torch.linalg.svd(W_A, False)
    sigma_B = torch.linalg.svd(W_B, False)[1]
    r, dW = spectra.rank_for_share(sigma_A, THRESHOLD), W_B - W_A
    total = dW.double().square().sum()
    inside = (U[:, :r].T @ dW, dW @ V[:r].T)
    left, right = (float(part.double().square().sum() / total) for part in inside)
    return Found((r, spectra.rank_for_share(sigma_B, THRESHOLD)), (left, right))


def timed(action: Callable[[Tensor, Tensor], Found], pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Seconds of one pass over all pairs."""
    started = time.perf_counter()
    for W_A, W_B in pairs:
        action(W_A, W_B)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, action="append", help="[out, in]; repeatable")
    parser.add_argument("--matrices", type=int, default=2, help="of each shape")
    options = parser.parse_args()
    print(f"{options.matrices} matrices per shape, fp32, {torch.get_num_threads()} threads")
    print(
        f"{'step':5} {'shape':>12} {'ours s':>8} {'SVD s':>8} {'ratio':>6}  ranks  shares differ by"
    )
    for shape in options.shape or [(3072, 768), (768, 3072)]:
        pairs = [pair(tuple(shape), seed) for seed in range(options.matrices)]
        for step, ours, reference in (
            ("7", step_7, step_7_reference),
            ("10", step_10, step_10_reference),
        ):
            both = [(ours(*p), reference(*p)) for p in pairs[:1]]  # warm up, and compare
            same = all(a.ranks == b.ranks for a, b in both)
            gap = max(abs(x - y) for a, b in both for x, y in zip(a.shares, b.shares, strict=True))
            fast, slow = timed(ours, pairs), timed(reference, pairs)
            name = "x".join(map(str, shape))
            print(
                f"{step:5} {name:>12} {fast:8.2f} {slow:8.2f} {slow / fast:6.1f}  "
                f"{'same' if same else 'DIFFER':6} {gap:.1e}"
            )


if __name__ == "__main__":
    main()
