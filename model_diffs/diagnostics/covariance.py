"""Step 9: the spectrum of the covariance of hidden states over tokens.

No bootstrap intervals: a resample repeats documents, which lowers the rank of the pooled second
moment and biases its eigenvalues.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_diffs.activations.saved import Saved
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress

SPLITS = ("forget", "retain")
ENERGY = 0.99
TOP = 10
# States are multiplied in fp32: a rank-deficient covariance has small negative eigenvalues, of the
# order of fp32's rounding relative to the largest one.
ROUNDING = 1e-5

Floats = NDArray[np.float64]

# ── spectra ───────────────────────────────────────────────────────────────────────────────────────


def eigenvalues(covariance: Floats, name: str = "the covariance") -> Floats:
    """Eigenvalues of a symmetric positive semi-definite matrix `[d, d]`, descending, none negative.

    Values down to −ROUNDING × the largest become 0. Raises BadInput, with `name`, for anything
    further below zero and for what is not finite.
    """
    advice = "the saved statistics are damaged, delete activation_cache and run again"
    if not np.isfinite(covariance).all():
        raise BadInput(f"{name} is not finite: {advice}")
    found = np.linalg.eigvalsh(covariance)[::-1]
    if found[-1] < -ROUNDING * max(found[0], 0.0):
        raise BadInput(
            f"{name} has the eigenvalue {found[-1]:.3g} beside {found[0]:.3g}, which no covariance "
            f"has: {advice}"
        )
    return np.maximum(found, 0.0)


def spectra(saved: Saved, name: str) -> Floats:
    """Eigenvalues of Σ over tokens of (h − mean)(h − mean)ᵀ / tokens in each state: `[S, d]`.

    `name` says whose, in messages.
    """
    tokens = int(saved.read("tokens").tokens.sum())
    states = len(saved.read("mean").mean)
    bar = progress(saved.states("scatter"), f"covariance, {name}", total=states, unit="state")
    found = [
        eigenvalues(scatter / tokens, f"covariance of {name}, state {state}")
        for state, scatter in enumerate(bar)
    ]
    return np.stack(found)


# ── measures of a spectrum; None where it is zero ─────────────────────────────────────────────────


def effective_rank(spectrum: Floats) -> int | None:
    """99 %-energy rank: how many of the largest eigenvalues hold 99 % of the trace."""
    trace = spectrum.sum()
    # A share below 0.99 by rounding alone counts as 0.99.
    reached = np.cumsum(spectrum) >= ENERGY * trace * (1 - 1e-12)
    return int(reached.argmax()) + 1 if trace else None


def entropy(spectrum: Floats) -> float | None:
    """−Σ p log p of p = λ/Σλ, in nats: log d for an isotropic cloud, 0 for a line."""
    trace = spectrum.sum()
    if trace == 0:
        return None
    p = spectrum[spectrum > 0] / trace
    return float(-(p * np.log(p)).sum())


def participation_ratio(spectrum: Floats) -> float | None:
    """(Σλ)²/Σλ²: how many directions of equal variance would be as concentrated."""
    trace = spectrum.sum()
    return float(1 / ((spectrum / trace) ** 2).sum()) if trace else None


def top_share(spectrum: Floats) -> float | None:
    """Share of the trace in the ten largest eigenvalues."""
    return float(spectrum[:TOP].sum() / spectrum.sum()) if spectrum.sum() else None


def top_change(a: Floats, b: Floats) -> float | None:
    """Change of `top_share` from a to b."""
    before, after = top_share(a), top_share(b)
    return None if before is None or after is None else after - before


def wasserstein(a: Floats, b: Floats) -> float:
    """Wasserstein-1 distance of two spectra as equal-weight samples: mean |λᵢ − λᵢ′| in order."""
    return float(np.abs(np.sort(a) - np.sort(b)).mean())


def wasserstein_normalised(a: Floats, b: Floats) -> float | None:
    """The same of spectra scaled to mean 1: change in shape, not in size."""
    return wasserstein(a / a.mean(), b / b.mean()) if a.sum() and b.sum() else None


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def rows(a: Mapping[str, Floats], b: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """One row per state from the spectra `[S, d]` of base and changed model, by split.

    Empty: what is undefined for a zero spectrum, and selectivity where retain did not change.
    """
    return [_row(layer, a, b) for layer in range(len(a["forget"]))]


def _row(layer: int, a: Mapping[str, Floats], b: Mapping[str, Floats]) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer}

    def each(name: str, measure: Callable[[Floats], Any]) -> None:
        for split in SPLITS:
            for side, found in (("a", a), ("b", b)):
                row[f"{split}_{name}_{side}"] = measure(found[split][layer])

    def change(name: str, measure: Callable[[Floats, Floats], Any]) -> None:
        for split in SPLITS:
            row[f"{split}_{name}"] = measure(a[split][layer], b[split][layer])

    def selectivity(kind: str = "") -> None:
        forget, retain = (row[f"{split}_wasserstein{kind}"] for split in SPLITS)
        row[f"selectivity_ratio{kind}"] = forget / retain if forget is not None and retain else None

    each("eff_rank", effective_rank)
    each("entropy", entropy)
    change("wasserstein", wasserstein)
    change("top10_change", top_change)
    selectivity()
    change("wasserstein_normalised", wasserstein_normalised)
    selectivity("_normalised")
    each("participation", participation_ratio)
    each("trace", lambda spectrum: float(spectrum.sum()))
    return row


def summary(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over states, and where the forget spectrum changed most."""

    def mean(column: str) -> float | None:
        defined = [row[column] for row in table if row[column] is not None]
        return float(np.mean(defined)) if defined else None

    most = max(table, key=lambda row: row["forget_wasserstein_normalised"] or 0.0)
    return {
        "states": len(table),
        "mean_over_states": {column: mean(column) for column in table[0] if column != "layer"},
        "largest_normalised_forget_change": {
            "layer": most["layer"],
            "forget": most["forget_wasserstein_normalised"],
            "retain": most["retain_wasserstein_normalised"],
        },
        "states_without_selectivity": sum(row["selectivity_ratio"] is None for row in table),
    }
