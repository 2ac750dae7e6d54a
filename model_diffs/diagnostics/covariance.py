"""Step 9: the spectrum of the covariance of hidden states over tokens.

No bootstrap intervals: a resample repeats documents, which lowers the rank of the pooled second
moment and biases its eigenvalues.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model_diffs.activations.saved import Saved
from model_diffs.core.errors import BadInput

SPLITS = ("forget", "retain")
ENERGY = 0.99
TOP = 10

Floats = NDArray[np.float64]


def spectra(saved: Saved, name: str) -> Floats:
    """Eigenvalues of Σ over tokens of (h − mean)(h − mean)ᵀ / tokens in every state: `[S, d]`.

    `name` says whose, in messages. Raises BadInput for what no spectrum of a covariance is.
    """
    found = saved.read("spectrum", "every")
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise BadInput(
            f"the spectrum of {name} is not that of a covariance: the saved statistics are "
            "damaged, delete activation_cache and run again"
        )
    return found


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


def top_share_change(a: Floats, b: Floats) -> float | None:
    """Change of `top_share` from a to b: of the shape only, with its sign."""
    before, after = top_share(a), top_share(b)
    return None if before is None or after is None else after - before


def top_relative_change(a: Floats, b: Floats) -> float | None:
    """Σ|λᵢ′ − λᵢ| / Σλᵢ over the ten largest: of shape and size, without a sign."""
    before, after = a[:TOP], b[:TOP]
    return float(np.abs(after - before).sum() / before.sum()) if before.sum() else None


def wasserstein(a: Floats, b: Floats) -> float:
    """Wasserstein-1 distance of two spectra as equal-weight samples: mean |λᵢ − λᵢ′| in order."""
    return float(np.abs(np.sort(a) - np.sort(b)).mean())


def wasserstein_normalised(a: Floats, b: Floats) -> float | None:
    """The same of spectra scaled to mean 1: change in shape, not in size."""
    return wasserstein(a / a.mean(), b / b.mean()) if a.sum() and b.sum() else None


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def metric_table(spectra: Mapping[str, Floats]) -> pd.DataFrame:
    """One row per state from the spectra `[S, d]` `forget_a`, `retain_a`, `forget_b`, `retain_b`
    of base A and changed model B.

    Empty: what is undefined for a zero spectrum, and selectivity where retain did not change.
    """
    table = pd.DataFrame({"layer": range(len(spectra["forget_a"]))})

    def each(name: str, measure: Callable[[Floats], Any]) -> None:
        for split in SPLITS:
            for side in "ab":
                found = spectra[f"{split}_{side}"]
                table[f"{split}_{name}_{side}"] = [measure(spectrum) for spectrum in found]

    def change(name: str, measure: Callable[[Floats, Floats], Any]) -> None:
        for split in SPLITS:
            pairs = zip(spectra[f"{split}_a"], spectra[f"{split}_b"], strict=True)
            table[f"{split}_{name}"] = pd.Series([measure(a, b) for a, b in pairs], dtype=float)

    def selectivity(kind: str = "") -> None:
        forget, retain = (table[f"{split}_wasserstein{kind}"] for split in SPLITS)
        table[f"selectivity_ratio{kind}"] = forget / retain.where(retain > 0)

    each("eff_rank", effective_rank)
    each("entropy", entropy)
    change("wasserstein", wasserstein)
    change("top10_change", top_share_change)
    selectivity()
    change("wasserstein_normalised", wasserstein_normalised)
    selectivity("_normalised")
    each("participation", participation_ratio)
    each("trace", np.sum)
    each("top10_share", top_share)
    change("top10_relative_change", top_relative_change)
    return table


def add_residual(table: pd.DataFrame, residual: pd.DataFrame) -> pd.DataFrame:
    """The normalised distances in the residual stream beside those in the hidden states."""
    found = table.copy()
    for name in (f"{split}_wasserstein_normalised" for split in SPLITS):
        found[f"{name}_residual"] = residual[name]
    return found


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Means over states, and where the forget spectrum changed most."""
    defined = {name: table[name].dropna().to_numpy(float) for name in table.columns[1:]}
    largest = table["forget_wasserstein_normalised"].fillna(0.0).argmax()
    most = table.astype(object).where(table.notna(), None).iloc[largest]
    return {
        "states": len(table),
        "mean_over_states": {
            name: float(np.mean(values)) if len(values) else None
            for name, values in defined.items()
        },
        "largest_normalised_forget_change": {
            "layer": int(most["layer"]),
            "forget": most["forget_wasserstein_normalised"],
            "retain": most["retain_wasserstein_normalised"],
        },
        "states_without_selectivity": int(table["selectivity_ratio"].isna().sum()),
    }
