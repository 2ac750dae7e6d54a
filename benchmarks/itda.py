"""How fast is matching pursuit, against a loop that forms all products anew in each step?

python benchmarks/itda.py
python benchmarks/itda.py --tokens 2048 --steps 3

The bound is what no batched pursuit can do without: one product of all activations with all atoms,
and the atoms' products with one another. The plain loop is timed on some of its steps, which all
cost the same.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from model_diffs.dictionaries import pursuit


def plain_loop(x: Tensor, atoms: Tensor, k: int) -> Tensor:
    """What one would write first; returns the residual."""
    residual = x.clone()
    rows = torch.arange(len(x))
    for _ in range(k):
        products = residual @ atoms.T
        j = products.abs().argmax(1)
        residual -= products[rows, j, None] * atoms[j]
    return residual


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some runs: what other work on the machine adds is no part of it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mib() -> float:
    """Peak memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--atoms", type=int, default=4096)
    parser.add_argument("--k", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4, help="of the plain loop that are timed")
    options = parser.parse_args()
    torch.manual_seed(0)
    atoms = normalize(torch.randn(options.atoms, options.width), dim=1)
    x = torch.randn(options.tokens, options.width)
    rows = pursuit.chunk_rows(options.atoms, x.device)
    print(
        f"{options.tokens} tokens, d {options.width}, {options.atoms} atoms, k {options.k}, fp32, "
        f"{torch.get_num_threads()} threads; chunks of {rows} tokens "
        f"({pursuit.CHUNK_BYTES['cpu'] >> 20} MiB of products)"
    )

    def ours() -> pursuit.Codes:
        return pursuit.matching_pursuit(x, atoms, options.k, pursuit.gram_of(atoms))

    ours()
    before = peak_mib()
    encode = seconds(ours)
    grown = peak_mib() - before
    after_first = peak_mib()
    part = x[: max(1, options.tokens // 8)]
    products = torch.empty(len(part), options.atoms)
    pieces = list(x.split(len(part)))

    def one_product() -> None:
        for piece in pieces:
            torch.mm(piece, atoms.T, out=products[: len(piece)])

    gemm = seconds(one_product)
    gram = seconds(lambda: pursuit.gram_of(atoms))
    loop = seconds(lambda: plain_loop(x, atoms, options.steps), 1) / options.steps * options.k
    print(f"{'':34}{'seconds':>9}")
    print(f"{'plain loop (from ' + str(options.steps) + ' steps)':34}{loop:9.2f}")
    print(f"{'matching_pursuit':34}{encode:9.2f}   {loop / encode:.1f} x faster")
    print(f"{'  one product of x with the atoms':34}{gemm:9.2f}")
    print(f"{'  products among the atoms':34}{gram:9.2f}")
    print(f"{'  bound (both)':34}{gemm + gram:9.2f}   {(gemm + gram) / encode:.0%} of our time")
    dense, among = (n * options.atoms * 4 / 2**20 for n in (options.tokens, options.atoms))
    print(
        f"peak memory {after_first:.0f} MiB, grown by {grown:.0f} MiB in later runs; tokens x "
        f"atoms would be {dense:.0f} MiB, the atoms' own products are {among:.0f} MiB"
    )


if __name__ == "__main__":
    main()
