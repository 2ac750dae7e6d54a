"""Is the bound on σ₁ true on spectra made to break it, and what does it cost?

Twenty spectra, each with ten Gaussian blocks: flat with one larger value, clusters, staircases. The
matrix has these singular values by construction (Householder reflections of a diagonal), checked
once against LAPACK in fp64. The reference stops where the residual of the leading Ritz pair is
small: it bounds the distance to some singular value, not to the largest.

python benchmarks/spectra_bound.py
python benchmarks/spectra_bound.py --side 4096 --seeds 3 --only "flat, one 1.02" --no-lapack
"""

import argparse
import math
import time
import warnings

import torch

from model_diffs.stats import spectra

TOL = 1e-3


def planted(sigma: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A square matrix in fp32 with these singular values: reflections on both sides."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.diag(sigma.double())
    for _ in range(4):
        v = torch.randn(len(sigma), generator=generator, dtype=torch.float64)
        v /= v.norm()
        W -= 2 * torch.outer(v, v @ W)
        W = W.T.contiguous()
    return W.float()


def adversarial(n: int) -> dict[str, torch.Tensor]:
    """Singular values [n], where a largest one is easily missed, or close to many."""
    i = torch.arange(n, dtype=torch.float64)
    flat = torch.ones(n, dtype=torch.float64)

    def led(rest: torch.Tensor, *leading: float) -> torch.Tensor:
        return torch.cat([torch.tensor(leading, dtype=torch.float64), rest[len(leading) :]])

    return {
        **{
            f"flat, one {x}": led(flat, x)
            for x in (1.001, 1.002, 1.005, 1.01, 1.02, 1.03, 1.05, 1.1)
        },
        "flat, 1.02 and 1.001": led(flat, 1.02, 1.001),
        "half of it zero, one 1.01": led((i < n // 2).double(), 1.01),
        "falls to 1/2, gap of 1e-3": led(1 - i / (2 * n), 1.001),
        "falls to 1/2, one 1.02": led(1 - i / (2 * n), 1.02),
        "band of 1 %, one 1.005": led(1 - 0.01 * i / n, 1.005),
        "band of 10 %, one 1.002": led(1 - 0.1 * i / n, 1.002),
        "cluster of 16, one 1.005": led(torch.where(i < 16, 1.0, 0.5), 1.005),
        "cluster of 64 within 1e-3": torch.where(i < 64, 1 - 1e-3 * i / 64, 0.9),
        "stairs of 0.9": 0.9 ** (i // max(1, n // 16)),
        "stairs of 0.99, one 1.003": led(0.99 ** (i // max(1, n // 64)), 1.003),
        "square-root edge": (1 - (i / n) ** (2 / 3)).clamp_min(0).sqrt(),
        "one 1.01, then i^-0.1": led((i + 1) ** -0.1, 1.01),
    }


def ordinary(n: int) -> dict[str, torch.Tensor]:
    """Singular values [n] as those of weights and of their changes: they fall from the first on."""
    i = torch.arange(1, n + 1, dtype=torch.float64)
    return {
        "i^-0.1": i**-0.1,
        "i^-0.3": i**-0.3,
        "i^-0.6": i**-0.6,
        "8 of 5, then 1": torch.where(i <= 8, 5 - i / 8, 1 - 0.9 * i / n),
    }


def by_residual(W: torch.Tensor, seed: int, width: int = 4) -> tuple[float, float, int]:
    """σ₁, the bound of its residual and products: block Lanczos that stops at that bound."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(len(W), width, generator=generator)
    basis, images = torch.empty(len(W), len(W)), torch.empty(len(W), len(W))
    size, error = 0, math.inf
    scale = float(W.abs().max()) if bool(W.any()) else 1.0
    while error > TOL:
        for _ in range(2):
            block = torch.linalg.qr(block - basis[:, :size] @ (basis[:, :size].T @ block))[0]
        new, size = slice(size, size + width), size + width
        basis[:, new] = block
        block = images[:, new] = spectra._gram_product(W, block, scale)
        V, Z = basis[:, :size], images[:, :size]
        values, vectors = torch.linalg.eigh((V.T @ Z).double())
        theta, y = float(values[-1]), vectors[:, -1].float()
        error = float((Z @ y - theta * (V @ y)).norm()) / (2 * theta)
    return scale * math.sqrt(theta), error, size


def seconds(function, *arguments):
    """Result of the call and its time."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def certified(W: torch.Tensor, seed: int) -> spectra.TopSingularValue:
    return spectra.top_singular_value(W, TOL, 200, seed, "W")


def compare(name: str, sigma: torch.Tensor, seeds: int, lapack: bool) -> tuple[int, int]:
    """Print one line; return how often the bound, and the reference's, was true."""
    W, true = planted(sigma), float(sigma.max())
    _, full = seconds(torch.linalg.svdvals, W) if lapack else (None, math.nan)
    if lapack:
        found = float(torch.linalg.eigvalsh(W.double().T @ W.double())[-1].sqrt())
        assert abs(found / true - 1) < 1e-6, (name, found, true)
    ours = [seconds(certified, W, seed) for seed in range(seeds)]
    theirs = [seconds(by_residual, W, seed) for seed in range(seeds)]
    errors = [abs(true - top.value) / top.value for (top, _) in ours]
    missed = [abs(true - value) / value for ((value, _, _), _) in theirs]
    held = sum(e <= top.error for e, (top, _) in zip(errors, ours, strict=True))
    held_before = sum(e <= of[1] for e, (of, _) in zip(missed, theirs, strict=True))
    time_ours, time_theirs = (min(t for _, t in runs) for runs in (ours, theirs))
    print(
        f"{name:27} {held:3d}/{seeds} {max(errors):8.1e} {max(t.error for t, _ in ours):8.1e} "
        f"{max(t.iterations for t, _ in ours) * spectra.BLOCK:8d} {time_ours:7.3f} | "
        f"{held_before:3d}/{seeds} {max(missed):8.1e} {max(r[2] for r, _ in theirs):8d} "
        f"{time_ours / time_theirs:8.2f} {full / time_ours:8.1f}",
        flush=True,
    )
    return held, held_before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", help="one spectrum")
    parser.add_argument("--no-lapack", action="store_true", help="trust the construction")
    options = parser.parse_args()
    warnings.simplefilter("error")  # the tolerance is reached everywhere
    print(f"{options.side} x {options.side}, fp32, {torch.get_num_threads()} threads, tol {TOL}")
    print(
        f"{'':27} {'true':>6} {'error':>8} {'bound':>8} {'products':>8} {'seconds':>7} | "
        f"{'true':>6} {'error':>8} {'products':>8} {'time x':>8} {'svdvals':>8}"
    )
    for title, spectrum in (("adversarial", adversarial), ("ordinary", ordinary)):
        chosen = {k: v for k, v in spectrum(options.side).items() if options.only in (None, k)}
        rows = [
            compare(name, sigma, options.seeds, not options.no_lapack)
            for name, sigma in chosen.items()
        ]
        if rows:
            ours, theirs = (sum(column) for column in zip(*rows, strict=True))
            print(
                f"{title}: bound true in {ours}, the residual's in {theirs}, of "
                f"{len(rows) * options.seeds}\n"
            )


if __name__ == "__main__":
    main()
