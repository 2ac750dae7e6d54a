"""How much of an MLP's weight change lies outside the subspaces that the base's matrix uses."""

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from statistics import fmean

import torch
from torch import Tensor

from model_diffs.diagnostics.subspaces import Decomposition, Row, numerical_rank
from model_diffs.models.architectures import Matrix
from model_diffs.stats.spectra import rank_for_share, row_parts, singular_values, tall

ENERGIES = (
    *("nullspace_energy", "random_nullspace_energy"),
    *("input_nullspace_energy", "random_input_nullspace_energy"),
)
NULLS = ("own_nullspace_energy", "unrelated_nullspace_energy", "unrelated_input_nullspace_energy")
"""Shares that a rescaled W and an unrelated matrix of W's spectrum give."""
SUMMARISED = (*ENERGIES, "rank_increase", "relative_update_size", *NULLS)


def inside_energies(base: Decomposition, r: int, dW: Tensor) -> tuple[float, float, float]:
    """‖dW‖_F, and the shares of its square in W's r top left and right singular vectors.

    Smaller side: ‖D S‖² with S its r leading vectors and D = dW (or its transpose), tall. Larger
    side: with T = W and U = T S Σ⁻¹, ‖UᵀD‖² = ‖Σ⁻¹ Sᵀ (TᵀD)‖², so that U is never formed.
    """
    S, sigma = base.small[:, :r], base.sigma[:r]
    T, D = tall(base.W), tall(dW)
    total, small = 0.0, 0.0
    cross = torch.zeros(T.shape[1], T.shape[1], dtype=torch.float64, device=S.device)
    for t, d in zip(row_parts(T, S.device), row_parts(D, S.device), strict=True):
        total += float(d.square().sum())
        small += float((d @ S).square().sum())
        cross.addmm_(t.T, d)
    large = float(((S.T @ cross) / sigma[:, None]).square().sum())
    # A share is at most one, and one where the subspace is the whole side. Rounding may give
    # another value, whose root outside would be too large to look like rounding.
    small = 1.0 if r == len(S) else min(1.0, small / total)
    large = 1.0 if r == len(T) else min(1.0, large / total)
    left, right = (large, small) if dW.shape[0] >= dW.shape[1] else (small, large)
    return math.sqrt(total), left, right


def unrelated_energy(side: int, r: int, own: float) -> float:
    """The share outside W's r top singular vectors on a `side`, expected of W' − W for W' = Q W R
    with random rotations Q and R, where W itself has the share `own` there.

    E ‖P(W' − W)‖² = ‖P W‖² + E ‖P W'‖², since the mean of W' is zero, and E ‖P W'‖² is that of a
    random matrix, (side − r)/side of ‖W‖²; E ‖W' − W‖² = 2‖W‖².
    """
    return (own + (side - r) / side) / 2


def alignment_row(
    matrix: Matrix, base: Decomposition, W_B: Tensor, dW: Tensor, threshold: float
) -> Row:
    """One line of mlp_nullspace_metrics.csv: how much of dW lies in, and outside, the subspaces
    with `threshold` of W_A's energy. Shares are None where dW is zero.
    """
    (m, n), r = matrix.shape, min(rank_for_share(base.sigma, threshold), base.rank)
    norm, left, right, updated = 0.0, None, None, r
    if bool(dW.any()):
        norm, left, right = inside_energies(base, r, dW)
        sigma = singular_values(W_B)
        updated = min(rank_for_share(sigma, threshold), numerical_rank(sigma, W_B.shape))
    outputs, inputs = (None if share is None else 1.0 - share for share in (left, right))
    original = float(base.sigma.norm())
    own = float(base.sigma[r:].norm()) ** 2 / original**2 if original else None
    unrelated = [None if own is None else unrelated_energy(side, r, own) for side in (m, n)]
    return {
        "name": matrix.name,
        "layer": matrix.layer,
        "type": matrix.component,
        "shape": f"{m}x{n}",
        "original_eff_rank": r,
        "updated_eff_rank": updated,
        "rank_increase": updated - r,
        "colspace_projection_ratio": _root(left),
        "nullspace_projection_ratio": _root(outputs),
        "nullspace_dimension": m - r,
        "update_norm": norm,
        "original_norm": original,
        "relative_update_size": norm / original if original else None,
        "colspace_energy": left,
        "nullspace_energy": outputs,
        "random_nullspace_energy": (m - r) / m,
        "rowspace_projection_ratio": _root(right),
        "input_nullspace_projection_ratio": _root(inputs),
        "input_nullspace_dimension": n - r,
        "rowspace_energy": right,
        "input_nullspace_energy": inputs,
        "random_input_nullspace_energy": (n - r) / n,
        "own_nullspace_energy": own,
        "unrelated_nullspace_energy": unrelated[0],
        "unrelated_input_nullspace_energy": unrelated[1],
    }


def _root(share: float | None) -> float | None:
    return None if share is None else math.sqrt(share)


def layer_rows(rows: Sequence[Row]) -> list[Row]:
    """Lines of layer_nullspace_summary.csv: the MLP matrices of each block together.

    Norms are roots of sums of squares; energies are shares of the block's whole update, Σ‖dW‖²,
    None where nothing changed; those that W alone gives also where a W that changed is zero.
    """
    found = []
    for layer, of in groupby(sorted(rows, key=itemgetter("layer")), itemgetter("layer")):
        block = [*of]
        changed = [row for row in block if row["nullspace_energy"] is not None]
        update = math.hypot(*(row["update_norm"] for row in block))
        original = math.hypot(*(row["original_norm"] for row in block))
        shares = {column: _share_of_update(changed, column) for column in (*ENERGIES, *NULLS)}
        means = {
            "layer": layer,
            **{column: shares[column] for column in ENERGIES},
            "mean_original_eff_rank": fmean(row["original_eff_rank"] for row in block),
            "mean_rank_increase": fmean(row["rank_increase"] for row in block),
            "update_norm": update,
            "original_norm": original,
            "relative_update_size": update / original if original else None,
            "count_mats": len(block),
            "count_changed": len(changed),
            **{column: shares[column] for column in NULLS},
        }
        found.append(means)
    return found


def _share_of_update(changed: Sequence[Row], column: str) -> float | None:
    """A share of Σ‖dW‖² from the shares of each matrix; None where one has none."""
    if not changed or any(row[column] is None for row in changed):
        return None
    parts = math.fsum(row["update_norm"] ** 2 * row[column] for row in changed)
    return parts / math.hypot(*(row["update_norm"] for row in changed)) ** 2
