"""How fast are probes in the span of their documents, against scikit-learn on all dimensions?

Both fit the same standardised features to the same tolerance; scikit-learn with its usual solver
and with the one that we use. A fold fits twice on one rotation, with true and with shuffled
labels; all of that is inside our time. CPU seconds on one thread, since a shared machine's clock is
noisy and waiting threads burn time.

    uv run benchmarks/probes.py
    uv run benchmarks/probes.py --documents 800 --dimensions 4096
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from model_diffs.diagnostics import probes

# Residual streams of the published sizes: Pythia-160M, -1B and -6.9B.
SHAPES = [(102, 768), (400, 2048), (800, 4096)]
SETTINGS = probes.Settings(C=1.0, max_iter=1000, standardize=True, seed=42)


def states(documents: int, dimensions: int, effective: int = 40) -> tuple[Any, Any]:
    """Standardised states with a falling spectrum, as hidden states have, and labels in them."""
    draw = np.random.default_rng(0)
    labels = np.arange(documents) % 2 == 0
    factors = draw.normal(size=(documents, effective)) + 0.5 * labels[:, None]
    x = factors @ draw.normal(size=(effective, dimensions))
    x += draw.normal(size=(documents, dimensions))
    return probes.standardise(x, x)[0], labels


def seconds(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Least CPU time of some repeats, and the result."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        taken.append(time.process_time() - start)
    return min(taken), result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=None)
    parser.add_argument("--dimensions", type=int, default=None)
    options = parser.parse_args()
    shapes = SHAPES
    if options.documents and options.dimensions:
        shapes = [(options.documents, options.dimensions)]
    warnings.simplefilter("error")  # a fit that did not converge is no comparison
    print(f"tolerance {probes.TOLERANCE:g}, C = 1; CPU seconds of two fits")
    header = ("documents", "dimensions", "span", "lbfgs", "newton-cg", "/ lbfgs", "/ newton-cg")
    print(" ".join(f"{name:>12}" for name in (*header, "max |Δw|")))
    for documents, dimensions in shapes:
        x, labels = states(documents, dimensions)

        shuffled = np.random.default_rng(1).permutation(labels)

        def ours(x: Any = x, both: Any = (labels, shuffled)) -> Any:
            span, _ = probes.rotate(x, x[: len(x) // 4])
            fits = [probes.fit(span, one, SETTINGS)[0] for one in both]
            return span @ fits[0].coef_[0]

        def full(solver: str, x: Any = x, both: Any = (labels, shuffled)) -> Any:
            model = LogisticRegression(solver=solver, tol=probes.TOLERANCE, max_iter=100_000)
            fits = [model.fit(x, one).coef_[0].copy() for one in both]
            return fits[0]

        span, decisions = seconds(ours)
        coefficients = np.linalg.lstsq(x, decisions)[0]
        times = {s: seconds(lambda s=s, full=full: full(s)) for s in ("lbfgs", "newton-cg")}
        apart = max(np.abs(coefficients - reference).max() for _, reference in times.values())
        ratios = [taken / span for taken, _ in times.values()]
        cells = [f"{documents:12d}", f"{dimensions:12d}", f"{span:12.3f}"]
        cells += [f"{taken:12.3f}" for taken, _ in times.values()]
        cells += [f"{ratio:12.1f}" for ratio in ratios]
        print(" ".join([*cells, f"{apart:12.1e}"]))


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
