"""How fast are steps 7 and 10 beside full singular value decompositions of the same matrices?

Both compute, in one run and from the same W_A and W_B: step 7 the spectrum of dW and the angles of
both leading subspaces, step 10 the ranks and the energy of dW inside W_A's subspaces. The reference
takes torch.linalg.svd (LAPACK) of W_A, W_B and dW: full and in fp64, the precision of ours, and
once more in its cheapest form, reduced and in fp32.

    uv run benchmarks/subspaces.py
    uv run benchmarks/subspaces.py --shape 768 768 --matrices 3
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from model_diffs.diagnostics import mlp_nullspace, subspaces
from model_diffs.models.architectures import Matrix
from model_diffs.stats import spectra

K, THRESHOLD = 20, 0.99
Decompose = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


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
    row = subspaces.subspace_row(matrix, subspaces.decompose(W_A), W_B, W_B - W_A, K, seed=42)
    return Found((row["effective_rank"],), (row["subspace_alignment"], row["alignment_right"]))


def full(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ, Vᵀ with square U and V, in fp64."""
    return torch.linalg.svd(W.double(), full_matrices=True)


def reduced(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ, Vᵀ with min(m, n) vectors, in fp32."""
    return torch.linalg.svd(W, full_matrices=False)


def step_7_reference(svd: Decompose, W_A: Tensor, W_B: Tensor) -> Found:
    """The same through decompositions of all three matrices."""
    (U_A, _, V_A), (U_B, _, V_B) = svd(W_A), svd(W_B)
    sigma = svd(W_B - W_A)[1]
    left = torch.linalg.svdvals(U_A[:, :K].T @ U_B[:, :K]).mean()
    right = torch.linalg.svdvals(V_A[:K] @ V_B[:K].T).mean()
    return Found((spectra.rank_for_share(sigma, THRESHOLD),), (float(left), float(right)))


def step_10(W_A: Tensor, W_B: Tensor) -> Found:
    """As mlp_nullspace_alignment.py."""
    matrix = Matrix("W", "W", 0, "mlp", "mlp_in", (W_A.shape[0], W_A.shape[1]))
    base = subspaces.decompose(W_A)
    row = mlp_nullspace.alignment_row(matrix, base, W_B, W_B - W_A, THRESHOLD)
    ranks = (row["original_eff_rank"], row["updated_eff_rank"])
    return Found(ranks, (row["colspace_energy"], row["rowspace_energy"]))


def step_10_reference(svd: Decompose, W_A: Tensor, W_B: Tensor) -> Found:
    """The same through decompositions of both matrices."""
    U, sigma_A, V = svd(W_A)
    sigma_B = svd(W_B)[1]
    r, dW = spectra.rank_for_share(sigma_A, THRESHOLD), (W_B - W_A).to(U.dtype)
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
    columns = f"{'full fp64':>16} {'reduced fp32':>16}  ranks  shares differ by"
    print(f"{'step':4} {'shape':>10} {'ours s':>8} {columns}")
    for shape in options.shape or [(3072, 768), (768, 3072)]:
        pairs = [pair(tuple(shape), seed) for seed in range(options.matrices)]
        for step, ours, reference in (
            ("7", step_7, step_7_reference),
            ("10", step_10, step_10_reference),
        ):
            mine, others = ours(*pairs[0]), [reference(svd, *pairs[0]) for svd in (full, reduced)]
            ranks = "same" if all(other.ranks == mine.ranks for other in others) else "DIFFER"
            gap = max(abs(x - y) for x, y in zip(mine.shares, others[0].shares, strict=True))
            fast = timed(ours, pairs)
            slow = [timed(partial(reference, svd), pairs) for svd in (full, reduced)]
            ratios = " ".join(f"{seconds:8.2f} {seconds / fast:6.1f}x" for seconds in slow)
            name = "x".join(map(str, shape))
            print(f"{step:4} {name:>10} {fast:8.2f} {ratios}  {ranks:6} {gap:.1e}", flush=True)


if __name__ == "__main__":
    main()
