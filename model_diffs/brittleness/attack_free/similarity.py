"""How differently the two models arrange the texts: 1 − linear CKA of mean states.

Kornblith et al. 2019, "Similarity of neural network representations revisited" (arXiv:1905.00414),
eq. 3, on the mean state of each text, features centred.
"""

import numpy as np

from model_diffs.brittleness.attack_free.pair import Declaration, Floats, Pair

MEASURES = (
    Declaration("cka_forget", "1 − CKA of forget texts' states; mean over blocks.", True),
    Declaration("cka_retain", "The same of retain texts.", True),
)


def linear_cka(X: Floats, Y: Floats) -> float:
    """‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius, of centred `[texts, hidden]`: 1 for equal arrangements up
    to rotation and scale."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    below = np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)
    return float(np.linalg.norm(Y.T @ X) ** 2 / below)


def measure(pair: Pair) -> dict[str, float]:
    """Mean over the outputs of all blocks, the last before the final norm."""
    found = {}
    for split in ("forget", "retain"):
        a, b = (pair.pooled[split, which] for which in ("base", "changed"))
        blocks = range(1, a.shape[1])
        found[f"cka_{split}"] = 1 - float(np.mean([linear_cka(a[:, s], b[:, s]) for s in blocks]))
    return found
