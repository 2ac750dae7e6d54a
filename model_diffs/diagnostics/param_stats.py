"""Size, shape and precision of the weight changes between two checkpoints, matrix by matrix.

Everything is read in lockstep: one matrix of the base, the same of each changed model, their
difference in fp32, and on. The base's own statistics are computed once for all changed models.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model_diffs.models.architectures import GROUPS, Matrix
from model_diffs.models.checkpoints import Checkpoint, chunks, lockstep
from model_diffs.models.devices import gather_over_processes, share
from model_diffs.stats import spectra

Row = dict[str, Any]


class Settings(NamedTuple):
    """How spectral norms are computed."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    tol: float = 1e-3
    max_iterations: int = 200
    seed: int = 42
    empirical_threshold: float | None = None
    """Share of energy of the empirical rank; None leaves its columns out."""


class Spectrum(NamedTuple):
    """What is known of one matrix."""

    frobenius: float
    top: spectra.TopSingularValue
    empirical_rank: int | None


class Difference(NamedTuple):
    """What one pass over the entries of two matrices gives."""

    dW: Tensor
    """W_B − W_A, [out, in], fp32."""
    cosine: float | None
    """Of the two matrices as vectors; None where one is zero."""
    changed_fraction: float
    rounding_fro: float


# ── one matrix ────────────────────────────────────────────────────────────────────────────────────


def frobenius(W: Tensor) -> float:
    """‖W‖_F, summed in fp64 on the CPU over a few rows at a time."""
    return math.sqrt(math.fsum(float(part.double().square().sum()) for part in chunks(W)))


def squared_rounding(part: Tensor) -> float:
    """Expected squared error of rounding these values to their own dtype.

    Rounding to nearest errs uniformly over one spacing u of the number's binade, so by u²/12 in the
    mean square; u = eps · 2^⌊log₂|w|⌋, and the smallest normal number's below that.
    """
    limits = torch.finfo(part.dtype)
    lowest = math.frexp(limits.tiny)[1]
    exponents = torch.frexp(part.float()).exponent.clamp_min_(lowest).sub_(lowest)
    counts = torch.bincount(exponents.flatten()).double()
    binades = torch.arange(len(counts), dtype=torch.float64) + (lowest - 1)
    spacing = limits.eps * torch.exp2(binades)
    return float((counts * spacing.square()).sum()) / 12


def difference(stored_a: Tensor, stored_b: Tensor) -> Difference:
    """Subtract two stored matrices [out, in] in fp32 and compare them entry by entry.

    Works on a few rows at a time: only dW is held whole.
    """
    dW = torch.empty(stored_a.shape, dtype=torch.float32)
    inner, squared_a, squared_b, rounding, changed = 0.0, 0.0, 0.0, 0.0, 0
    for a, b, d in zip(chunks(stored_a), chunks(stored_b), chunks(dW), strict=True):
        changed += int((a != b).sum())
        rounding += squared_rounding(b)
        torch.sub(b.float(), a.float(), out=d)
        a, b = a.double(), b.double()
        inner += float((a * b).sum())
        squared_a += float(a.square_().sum())
        squared_b += float(b.square_().sum())
    lengths = math.sqrt(squared_a) * math.sqrt(squared_b)
    return Difference(
        dW,
        min(1.0, max(-1.0, inner / lengths)) if lengths else None,
        changed / dW.numel(),
        math.sqrt(rounding),
    )


def spectrum(W: Tensor, name: str, settings: Settings) -> Spectrum:
    """Frobenius norm, largest singular value and, where asked, empirical rank of W [out, in]."""
    norm = frobenius(W)
    on_device = W.to(settings.device, settings.dtype)
    top = spectra.top_singular_value(
        on_device, settings.tol, settings.max_iterations, settings.seed, name
    )
    del on_device
    rank = None
    if settings.empirical_threshold is not None:
        rank = spectra.empirical_rank(W.to(settings.device), settings.empirical_threshold)
    return Spectrum(norm, top, rank)


def matrix_row(matrix: Matrix, base: Spectrum, change: Spectrum, entries: Difference) -> Row:
    """One line of per_matrix.csv. Ratios to a zero matrix are None."""
    dW, W = change, base
    row: Row = {
        "name": matrix.name,
        "layer": matrix.layer,
        "group": matrix.group,
        "shape0": matrix.shape[0],
        "shape1": matrix.shape[1],
        "dW_fro": dW.frobenius,
        "W_fro": W.frobenius,
        "dW_fro_rel": _ratio(dW.frobenius, W.frobenius),
        "dW_spectral": dW.top.value,
        "W_spectral": W.top.value,
        "dW_spectral_rel": _ratio(dW.top.value, W.top.value),
        "dW_stable_rank": spectra.stable_rank(dW.frobenius, dW.top.value),
        "W_stable_rank": spectra.stable_rank(W.frobenius, W.top.value),
    }
    if base.empirical_rank is not None:
        row |= {"dW_empirical_rank": dW.empirical_rank, "W_empirical_rank": W.empirical_rank}
    return row | {
        "component": matrix.component,
        "cosine": entries.cosine,
        "changed_fraction": entries.changed_fraction,
        "rounding_fro": entries.rounding_fro,
        "dW_spectral_error": dW.top.error,
        "W_spectral_error": W.top.error,
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


# ── two checkpoints and more ──────────────────────────────────────────────────────────────────────


def compare(base: Checkpoint, changed: Sequence[Checkpoint], settings: Settings) -> list[list[Row]]:
    """Rows of per_matrix.csv for each changed model, the base read once.

    Several processes share out the matrices and all return all rows.

    Raises BadInput, naming the tensor, where the checkpoints cannot be subtracted or hold NaN, Inf
    or quantised weights.
    """
    for checkpoint in (base, *changed):
        check_vectors(checkpoint)
    rows = []
    for matrix, stored, others in lockstep(base, changed, share(base.matrices())):
        W = spectrum(stored.float(), f"{matrix.name} of {base.model}", settings)
        rows.append([changed_row(matrix, W, stored, *other, settings) for other in others])
    rows = gather_over_processes(rows)
    return [[row[i] for row in rows] for i in range(len(changed))]


def changed_row(
    matrix: Matrix,
    W: Spectrum,
    stored_a: Tensor,
    other: Checkpoint,
    stored_b: Tensor,
    settings: Settings,
) -> Row:
    """One line of per_matrix.csv, from the stored matrices."""
    entries = difference(stored_a, stored_b)
    label = f"the change of {matrix.name} to {other.model}"
    return matrix_row(matrix, W, spectrum(entries.dW, label, settings), entries)


def check_vectors(checkpoint: Checkpoint) -> int:
    """Number of tensors that are no matrix (biases, norms); BadInput for NaN or Inf in them."""
    inside = {matrix.tensor for matrix in checkpoint.matrices()}
    vectors = [name for name in checkpoint.names if name not in inside]
    for name in vectors:
        checkpoint.finite(name)
    return len(vectors)


# ── aggregation ───────────────────────────────────────────────────────────────────────────────────


def per_layer(rows: Sequence[Row]) -> list[Row]:
    """Lines of per_layer.csv: rows of per_matrix.csv gathered by layer and group."""
    keys = sorted({(row["layer"], GROUPS.index(row["group"])) for row in rows})
    return [
        {"layer": layer, "group": GROUPS[group]}
        | aggregate([r for r in rows if (r["layer"], r["group"]) == (layer, GROUPS[group])])
        for layer, group in keys
    ]


def per_component(rows: Sequence[Row]) -> list[Row]:
    """Lines of per_component.csv: rows of per_matrix.csv gathered by component."""
    components = dict.fromkeys(row["component"] for row in rows)
    return [
        {"component": component} | aggregate([r for r in rows if r["component"] == component])
        for component in components
    ]


def aggregate(rows: Sequence[Row]) -> Row:
    """Root-sum-square of Frobenius norms, largest spectral norms, means over changed matrices.

    Means are None where nothing changed.
    """
    changed = [row for row in rows if row["dW_fro"] > 0]
    dW_fro, W_fro = (_root_sum_square(row[c] for row in rows) for c in ("dW_fro", "W_fro"))
    dW_top, W_top = (max(row[c] for row in rows) for c in ("dW_spectral", "W_spectral"))
    found: Row = {
        "dW_fro_layer": dW_fro,
        "W_fro_layer": W_fro,
        "dW_fro_layer_rel": _ratio(dW_fro, W_fro),
        "max_dW_spectral": dW_top,
        "max_W_spectral": W_top,
        "max_dW_spectral_rel": _ratio(dW_top, W_top),
        "mean_dW_stable_rank": _mean(row["dW_stable_rank"] for row in changed),
    }
    if rows and "dW_empirical_rank" in rows[0]:
        found["mean_dW_empirical_rank"] = _mean(row["dW_empirical_rank"] for row in changed)
    return found | {"count_mats": len(rows), "count_changed": len(changed)}


def _root_sum_square(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values))


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None
