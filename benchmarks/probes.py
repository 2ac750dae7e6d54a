"""How fast are stacked probes, against one scikit-learn fit after another?

Both fit the same standardised features, of every state and fold with three sets of labels, as step
13 does. scikit-learn takes all dimensions with its usual solver; or coordinates along the documents
and Newton steps, one fit at a time, which is what stacked fits replaced. CPU seconds on one thread.

    uv run benchmarks/probes.py
    uv run benchmarks/probes.py --documents 800 --dimensions 4096 --states 2
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from model_diffs.stats import logistic

FOLDS = 5


def make(states: int, documents: int, dimensions: int) -> tuple[Any, Any]:
    """States with a falling spectrum, as hidden states have, and labels in them."""
    draw = np.random.default_rng(0)
    first = np.arange(documents) % 2 == 0
    labels = np.stack([first, draw.permutation(first), draw.permutation(first)])
    factors = draw.normal(size=(states, documents, 40)) + 0.5 * first[:, None]
    x = factors @ draw.normal(size=(40, dimensions))
    return x + draw.normal(size=x.shape), labels


def one_by_one(x: Any, labels: Any, folds: Any, solver: str, span: bool) -> Any:
    """Log-odds `[states · folds, label sets, documents]` by scikit-learn."""
    found = []
    for state in x:
        for fold in range(FOLDS):
            train = folds != fold
            if span:
                given = torch.from_numpy(state), torch.from_numpy(train)
                features = logistic.coordinates(*given, standardize=True).numpy()
            else:
                features = StandardScaler().fit(state[train]).transform(state)
            fits = [
                LogisticRegression(solver=solver, tol=1e-8, max_iter=100_000)
                .fit(features[train], one[train])
                .decision_function(features)
                for one in labels
            ]
            found.append(fits)
    return np.array(found)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--states", type=int, default=4)
    options = parser.parse_args()
    x, labels = make(options.states, options.documents, options.dimensions)
    folds = np.arange(options.documents) % FOLDS
    given = [torch.from_numpy(one) for one in (x, folds, labels)]
    logistic.fit_folds(given[0][:1], *given[1:], 1.0, 100, True)  # warm up
    ours, found = seconds(lambda: logistic.fit_folds(*given, 1.0, 100, True))
    print(
        f"{options.states} states, {options.documents} documents, {options.dimensions} wide: ",
        end="",
    )
    print(f"{len(found.scores) * len(labels)} fits; stacked {ours:.2f} CPU s")
    for name, solver, span in (("lbfgs, all dimensions", "lbfgs", False),
                               ("newton-cg, along the documents", "newton-cg", True)):  # fmt: skip
        taken, scores = seconds(lambda s=solver, p=span: one_by_one(x, labels, folds, s, p))
        odds = 1 / (1 + np.exp(-scores)) - found.scores.sigmoid().numpy()
        apart = np.abs(odds).max()
        print(
            f"{name:32} {taken:7.2f} CPU s, {taken / ours:5.1f} x; probabilities {apart:.0e} apart"
        )


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
