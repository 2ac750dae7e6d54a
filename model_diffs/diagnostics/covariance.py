"""Step 9: the shape of the cloud of hidden states, as the spectrum of its covariance over tokens.

Spectra of pooled second moments: eigenvalues are biased by resampling (duplicate documents lose
rank), so these numbers carry no bootstrap intervals.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.activations.store import Saved
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress

SPLITS = ("forget", "retain")
ENERGY = 0.99
TOP = 10
# States are multiplied in fp32: eigenvalues of a rank-deficient covariance come out as small
# negative numbers, of the order of fp32's rounding against the largest one.
ROUNDING = 1e-5

Floats = NDArray[np.float64]


class Row(NamedTuple):
    """One hidden state. a: base, b: changed model; empty where a spectrum is zero."""

    layer: int
    forget_eff_rank_a: int | None
    forget_eff_rank_b: int | None
    retain_eff_rank_a: int | None
    retain_eff_rank_b: int | None
    forget_entropy_a: float | None
    forget_entropy_b: float | None
    retain_entropy_a: float | None
    retain_entropy_b: float | None
    forget_wasserstein: float
    retain_wasserstein: float
    forget_top10_change: float | None
    retain_top10_change: float | None
    selectivity_ratio: float | None
    """Empty where the retain spectrum did not change at all."""
    forget_wasserstein_normalised: float | None
    retain_wasserstein_normalised: float | None
    selectivity_ratio_normalised: float | None
    forget_participation_a: float | None
    forget_participation_b: float | None
    retain_participation_a: float | None
    retain_participation_b: float | None
    forget_trace_a: float
    forget_trace_b: float
    retain_trace_a: float
    retain_trace_b: float


# ── spectra ───────────────────────────────────────────────────────────────────────────────────────


def eigenvalues(covariance: Floats, name: str = "the covariance") -> Floats:
    """Eigenvalues of a symmetric positive semi-definite matrix `[d, d]`, falling, none below zero.

    Those down to −ROUNDING × the largest are rounding and become 0. Raises BadInput, with `name`,
    for anything further below zero and for what is not finite.
    """
    if not np.isfinite(covariance).all():
        raise BadInput(f"{name} is not finite: run again with --force")
    found = np.linalg.eigvalsh(covariance)[::-1]
    if found[-1] < -ROUNDING * max(found[0], 0.0):
        raise BadInput(
            f"{name} has the eigenvalue {found[-1]:.3g} beside {found[0]:.3g}, which no covariance "
            "has: the saved statistics are damaged, run again with --force"
        )
    return np.maximum(found, 0.0)


def spectra(saved: Saved, name: str) -> Floats:
    """Eigenvalues of the centred covariance over tokens in each state, `[S, d]`, falling.

    Covariance = Σ over tokens of (h − mean)(h − mean)ᵀ / tokens. `name` says whose, in messages.
    """
    tokens = int(saved.read("tokens").tokens.sum())
    states = len(saved.read("mean").mean)
    bar = progress(saved.states("scatter"), f"covariance, {name}", total=states, unit="state")
    found = [
        eigenvalues(scatter / tokens, f"covariance of {name}, state {state}")
        for state, scatter in enumerate(bar)
    ]
    return np.stack(found)


# ── what a spectrum says ──────────────────────────────────────────────────────────────────────────


def effective_rank(spectrum: Floats) -> int | None:
    """How many of the largest eigenvalues hold 99 % of the trace; None for a zero spectrum."""
    trace = spectrum.sum()
    if trace == 0:
        return None
    # A share below 0.99 by rounding alone is not below it.
    reached = np.cumsum(spectrum) >= ENERGY * trace * (1 - 1e-12)
    return int(reached.argmax()) + 1


def entropy(spectrum: Floats) -> float | None:
    """−Σ p log p of p = λ/Σλ, in nats: log d for an isotropic cloud, 0 for a line."""
    trace = spectrum.sum()
    if trace == 0:
        return None
    p = spectrum[spectrum > 0] / trace
    return float(-(p * np.log(p)).sum())


def participation_ratio(spectrum: Floats) -> float | None:
    """(Σλ)²/Σλ²: how many directions of equal variance would be as concentrated."""
    if spectrum.sum() == 0:
        return None
    p = spectrum / spectrum.sum()
    return float(1 / (p**2).sum())


def top_share(spectrum: Floats) -> float | None:
    """Share of the trace in the ten largest eigenvalues."""
    return float(spectrum[:TOP].sum() / spectrum.sum()) if spectrum.sum() else None


def wasserstein(a: Floats, b: Floats) -> float:
    """Wasserstein-1 distance of two spectra as equal-weight samples: mean |λᵢ − λᵢ′| in order."""
    return float(np.abs(np.sort(a) - np.sort(b)).mean())


def wasserstein_normalised(a: Floats, b: Floats) -> float | None:
    """The same of spectra scaled to mean 1: what changed in shape, not in size."""
    if not (a.sum() and b.sum()):
        return None
    return wasserstein(a / a.mean(), b / b.mean())


def _ratio(forget: float | None, retain: float | None) -> float | None:
    return forget / retain if forget is not None and retain else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else b - a


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def rows(a: Mapping[str, Floats], b: Mapping[str, Floats]) -> list[Row]:
    """One row per state from the spectra `[S, d]` of base and changed model, by split."""
    return [
        _row(
            layer,
            {split: a[split][layer] for split in SPLITS},
            {split: b[split][layer] for split in SPLITS},
        )
        for layer in range(len(a["forget"]))
    ]


def _row(layer: int, a: Mapping[str, Floats], b: Mapping[str, Floats]) -> Row:
    cells: dict[str, Any] = {}
    for split in SPLITS:
        for side, spectrum in (("a", a[split]), ("b", b[split])):
            cells[f"{split}_eff_rank_{side}"] = effective_rank(spectrum)
            cells[f"{split}_entropy_{side}"] = entropy(spectrum)
            cells[f"{split}_participation_{side}"] = participation_ratio(spectrum)
            cells[f"{split}_trace_{side}"] = float(spectrum.sum())
        cells[f"{split}_wasserstein"] = wasserstein(a[split], b[split])
        cells[f"{split}_wasserstein_normalised"] = wasserstein_normalised(a[split], b[split])
        shares = top_share(a[split]), top_share(b[split])
        cells[f"{split}_top10_change"] = _difference(*shares)
    for kind in ("", "_normalised"):
        forget, retain = (cells[f"{split}_wasserstein{kind}"] for split in SPLITS)
        cells[f"selectivity_ratio{kind}"] = _ratio(forget, retain)
    return Row(layer=layer, **cells)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def summary(table: Sequence[Row]) -> dict[str, Any]:
    """Means over states, and where the forget spectrum changed most."""
    means = {name: _mean([getattr(row, name) for row in table]) for name in Row._fields[1:]}
    most = max(table, key=lambda row: row.forget_wasserstein_normalised or 0.0)
    return {
        "states": len(table),
        "mean_over_states": means,
        "largest_normalised_forget_change": {
            "layer": most.layer,
            "forget": most.forget_wasserstein_normalised,
            "retain": most.retain_wasserstein_normalised,
        },
        "states_without_selectivity": sum(row.selectivity_ratio is None for row in table),
    }
