"""Linear discriminant analysis with Ledoit–Wolf shrinkage, cheap where dimensions are many.

Equals scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`, which solves
with a d × d matrix. The shrunk covariance is a diagonal plus one rank per document, so with fewer
documents than dimensions a system of the documents' size is enough (Woodbury).
"""

import numpy as np
from numpy.typing import NDArray

from model_diffs.core.errors import BadInput
from model_diffs.stats.cross_validation import Design

Floats = NDArray[np.float64]


def shrinkage(Z: Floats) -> float:
    """Ledoit & Wolf (2004) intensity γ for centred `Z` `[documents, d]`: S = (1−γ) E + γ·tr(E)/d·I.

    E = ZᵀZ/n. β̄ = Σᵢ‖zᵢ‖⁴/n − ‖E‖² (over d·n) against δ = ‖E − tr(E)/d·I‖²/d; γ = min(β̄, δ)/δ.
    """
    n, d = Z.shape
    norms = (Z**2).sum(1)
    mu = norms.sum() / n / d
    gram = Z @ Z.T if n < d else Z.T @ Z
    energy = (gram**2).sum() / n**2
    beta = ((norms**2).sum() / n - energy) / (d * n)
    delta = energy / d - mu**2
    beta = min(beta, delta)
    return float(beta / delta) if beta > 0 else 0.0


def _shrunk(X: Floats, mean: Floats, prior: float) -> tuple[Floats, Floats]:
    """Covariance of one class `[n, d]` times `prior`: diagonal and rows of diag + rowsᵀ rows.

    Shrunk in features of unit variance, so that a few huge dimensions do not set the target.
    """
    n, centred = len(X), X - mean
    variance = (centred**2).mean(0)
    # A feature that varies by rounding alone is constant and keeps its scale (as in scikit-learn).
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    scale = np.where(constant, 1.0, np.sqrt(variance))
    Z = centred / scale
    gamma = shrinkage(Z)
    rows = np.sqrt(prior * (1 - gamma) / n) * centred
    return prior * gamma * (Z**2).mean() * scale**2, rows


def _solve(diagonal: Floats, rows: Floats, vector: Floats) -> Floats:
    """(diag(diagonal) + rowsᵀ rows)⁻¹ vector, by a system of the smaller side."""
    root = np.sqrt(diagonal)
    R, v = rows / root, vector / root
    if len(R) < len(v):
        return (v - R.T @ np.linalg.solve(np.eye(len(R)) + R @ R.T, R @ v)) / root
    return np.linalg.solve(np.eye(len(v)) + R.T @ R, v) / root


def decision(train: Floats, labels: NDArray[np.bool_], test: Floats) -> Floats:
    """Log-odds of forget for `test` `[m, d]` after training on `train` `[n, d]`: `[m]`.

    Raises BadInput where the training documents of each class are all alike.
    """
    forget, retain = train[labels].mean(0), train[~labels].mean(0)
    of_forget = _shrunk(train[labels], forget, labels.mean())
    of_retain = _shrunk(train[~labels], retain, 1 - labels.mean())
    diagonal, rows = of_forget[0] + of_retain[0], np.concatenate([of_forget[1], of_retain[1]])
    if not (diagonal > 0).all():
        raise BadInput(
            "the documents within each split have the same states, there is no spread to compare "
            "with: give texts that differ"
        )
    direction = _solve(diagonal, rows, forget - retain)
    return (test - (forget + retain) / 2) @ direction + np.log(labels.sum() / (~labels).sum())


def out_of_fold(states: Floats, plan: Design) -> Floats:
    """Log-odds of forget for each document `[documents, d]`, trained on the other folds only."""
    scores = np.empty(len(states))
    for fold in np.unique(plan.folds):
        test = plan.folds == fold
        scores[test] = decision(states[~test], plan.labels[~test], states[test])
    return scores
