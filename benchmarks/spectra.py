"""How fast and how exact is the largest singular value, against LAPACK?

python benchmarks/spectra.py
python benchmarks/spectra.py --shape 1024 4096
"""

import argparse
import time
from collections.abc import Callable

import torch

from model_diffs.stats import spectra


def planted(sigma: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A matrix [m, n] with these singular values and random singular vectors."""
    m, n = shape
    left = torch.linalg.qr(torch.randn(m, m))[0]
    right = torch.linalg.qr(torch.randn(n, m))[0]
    return (left * sigma) @ right.T


def matrices(shape: tuple[int, int]) -> dict[str, Callable[[], torch.Tensor]]:
    """Spectra from hard (flat) to easy."""
    m, n = shape
    falling = torch.arange(1, m + 1).float()
    return {
        "flat (Gaussian)": lambda: torch.randn(m, n),
        "decaying i^-0.3": lambda: planted(falling**-0.3, shape),
        "low rank + noise": lambda: (
            torch.randn(m, 8) @ torch.randn(8, n) * 0.05 + 0.5 * torch.randn(m, n)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, default=(2048, 8192))
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{tuple(options.shape)}, fp32, {torch.get_num_threads()} threads")
    columns = f"{'ours s':>8} {'svdvals s':>10} {'ratio':>7} {'error':>9} {'bound':>9} steps"
    print(f"{'spectrum':18} {columns}")
    for name, make in matrices(tuple(options.shape)).items():
        W = make()
        start = time.perf_counter()
        found = spectra.top_singular_value(W, 1e-3, max_iterations=200, seed=42, name=name)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        reference = float(torch.linalg.svdvals(W)[0])
        lapack = time.perf_counter() - start
        error = abs(found.value - reference) / reference
        print(
            f"{name:18} {ours:8.3f} {lapack:10.2f} {lapack / ours:7.1f} "
            f"{error:9.1e} {found.error:9.1e} {found.iterations:5d}"
        )


if __name__ == "__main__":
    main()
