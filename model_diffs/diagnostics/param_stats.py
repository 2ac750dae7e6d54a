"""Size, shape and precision of the weight changes between two checkpoints, matrix by matrix.

One matrix of the base is read, then the same of each changed model; their difference is formed in
fp32. The base's own statistics are computed once for all changed models.
"""

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint, chunks, lockstep
from model_diffs.models.devices import gather_over_processes, share
from model_diffs.stats import spectra

Row = dict[str, Any]


class Settings(NamedTuple):
    """How spectral norms are computed."""

    device: torch.device
    dtype: torch.dtype
    tol: float
    max_iterations: int
    seed: int
    empirical_threshold: float | None
    """Share of energy of the empirical rank; None leaves its columns out."""


# ── one matrix ────────────────────────────────────────────────────────────────────────────────────


def squared_rounding(part: Tensor) -> float:
    """Expected squared error of rounding these values to their own dtype.

    Rounding to nearest errs uniformly over one spacing u of the number's binade, so by u²/12 in the
    mean square; u = eps · 2^⌊log₂|w|⌋, and the smallest normal number's below that.
    """
    limits = torch.finfo(part.dtype)
    lowest = math.frexp(limits.tiny)[1]
    exponents = torch.frexp(part.float()).exponent.masked_fill_(part == 0, lowest)  # of a zero: 0
    counts = torch.bincount(exponents.clamp_min_(lowest).sub_(lowest).flatten()).double()
    binades = torch.arange(len(counts), dtype=torch.float64) + (lowest - 1)
    spacing = limits.eps * torch.exp2(binades)
    return float((counts * spacing.square()).sum()) / 12


def difference(stored_a: Tensor, stored_b: Tensor) -> tuple[Tensor, Row]:
    """dW = W_B − W_A [out, in] in fp32, and what the same pass over the entries says of them.

    Works on a few rows at a time: only dW is held whole. The cosine, of the two matrices as
    vectors, is None where one is zero.
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
    return dW, {
        "cosine": min(1.0, max(-1.0, inner / lengths)) if lengths else None,
        "changed_fraction": changed / dW.numel(),
        "rounding_fro": math.sqrt(rounding),
    }


def spectrum(W: Tensor, label: str, settings: Settings) -> Row:
    """Norms of W [out, in], the bound on the spectral one's relative error, and its ranks."""
    # In fp64 on the CPU, a few rows at a time.
    norm = math.sqrt(math.fsum(float(part.double().square().sum()) for part in chunks(W)))
    on_device = W.to(settings.device, settings.dtype)
    top = spectra.top_singular_value(
        on_device, settings.tol, settings.max_iterations, settings.seed, label
    )
    error = top.error
    if settings.dtype.itemsize < 4 and top.value:
        # Rounding moves σ₁ by no more than the σ₁ of what it took away (Weyl).
        lost = spectra.top_singular_value(
            W.to(settings.device) - on_device.float(),
            settings.tol,
            settings.max_iterations,
            settings.seed,
            f"{label}, what --dtype rounds away",
        )
        error += lost.value * (1 + lost.error) / top.value
    del on_device
    rank = spectra.stable_rank(norm, top.value)
    found = {"fro": norm, "spectral": top.value, "error": error, "stable_rank": rank}
    if settings.empirical_threshold is not None:
        sigma = spectra.singular_values(W.to(settings.device))
        found["empirical_rank"] = spectra.rank_for_share(sigma, settings.empirical_threshold)
    return found


def matrix_row(matrix: Matrix, W: Row, dW: Row, entries: Row) -> Row:
    """One line of per_matrix.csv from both spectra. Ratios to a zero matrix are None."""
    row: Row = {"name": matrix.name, "layer": matrix.layer, "group": matrix.group}
    row |= {"shape0": matrix.shape[0], "shape1": matrix.shape[1]}
    for name in ("fro", "spectral", "stable_rank", "empirical_rank"):
        if name in dW:
            row |= {f"dW_{name}": dW[name], f"W_{name}": W[name]}
        if name in ("fro", "spectral"):
            row[f"dW_{name}_rel"] = _ratio(dW[name], W[name])
    row |= {"component": matrix.component, **entries}
    return row | {"dW_spectral_error": dW["error"], "W_spectral_error": W["error"]}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


def compare(base: Checkpoint, changed: Sequence[Checkpoint], settings: Settings) -> list[list[Row]]:
    """Rows of per_matrix.csv for each changed model, the base read once.

    Several processes share out the matrices and all return all rows.

    Raises BadInput, naming the tensor, where the checkpoints cannot be subtracted or hold NaN, Inf
    or quantised weights.
    """
    for checkpoint in (base, *changed):
        checkpoint.check_vectors()
    rows = []
    for matrix, stored_a, others in lockstep(base, changed, share(base.matrices())):
        W = spectrum(stored_a.float(), f"{matrix.name} of {base.model}", settings)
        found = []
        for other, stored_b in others:
            dW, entries = difference(stored_a, stored_b)
            label = f"the change of {matrix.name} to {other.model}"
            found.append(matrix_row(matrix, W, spectrum(dW, label, settings), entries))
            del dW  # before the next one is made
        rows.append(found)
    return [[*of_one] for of_one in zip(*gather_over_processes(rows), strict=True)]


# ── aggregation ───────────────────────────────────────────────────────────────────────────────────


def gather(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Rows of per_matrix.csv aggregated by the columns `keys`, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, of, strict=True)) | aggregate(found) for of, found in groups.items()]


def per_layer(rows: Iterable[Row]) -> list[Row]:
    """Lines of per_layer.csv: rows of per_matrix.csv aggregated by layer and group, sorted."""
    return gather(sorted(rows, key=itemgetter("layer", "group")), "layer", "group")


def aggregate(rows: Sequence[Row]) -> Row:
    """Root-sum-square of Frobenius norms, largest spectral norms, means over changed matrices.

    Means are None where nothing changed.
    """
    changed = [row for row in rows if row["dW_fro"] > 0]
    ranks = [c for c in ("dW_stable_rank", "dW_empirical_rank") if c in rows[0]]
    dW_fro, W_fro = (math.sqrt(math.fsum(r[c] * r[c] for r in rows)) for c in ("dW_fro", "W_fro"))
    dW_top, W_top = (max(row[c] for row in rows) for c in ("dW_spectral", "W_spectral"))
    return {
        "dW_fro_layer": dW_fro,
        "W_fro_layer": W_fro,
        "dW_fro_layer_rel": _ratio(dW_fro, W_fro),
        "max_dW_spectral": dW_top,
        "max_W_spectral": W_top,
        "max_dW_spectral_rel": _ratio(dW_top, W_top),
        **{f"mean_{c}": fmean(row[c] for row in changed) if changed else None for c in ranks},
        "count_mats": len(rows),
        "count_changed": len(changed),
    }
