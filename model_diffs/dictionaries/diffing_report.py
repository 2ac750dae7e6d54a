"""Table, summary and figure of a comparison in the latents of a dictionary."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_diffs.core.errors import BadInput
from model_diffs.core.figures import BASE, WIDTH_INCHES
from model_diffs.dictionaries.diffing import Comparison, Fit
from model_diffs.dictionaries.diffing_contexts import Shares
from model_diffs.dictionaries.diffing_examples import Atom
from model_diffs.dictionaries.itda import ITDA
from model_diffs.stats.intervals import Interval

SIGNIFICANT = 0.05


class LatentRow(NamedTuple):
    """A row of latents.csv."""

    rank: int
    """1: the largest increase."""
    latent: int
    token: str | None
    """The atom's own token; empty where the dictionary does not say."""
    sequence: int
    position: int
    mean_a: float
    mean_b: float
    difference: float
    std_error: float | None
    """Empty where there is only one document."""
    p_value: float | None
    """Empty where the latent occurs in too few documents to be tested."""
    q_value: float | None
    frequency_a: float
    frequency_b: float
    frequency_difference: float
    documents: int


def atoms_of(folder: str | Path) -> dict[int, Atom]:
    """What atoms.csv of a dictionary's folder says of each; empty where there is none."""
    path = Path(folder) / "atoms.csv"
    if not path.is_file():
        return {}
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype={"token": str, "before": str})
        columns = (table["latent"], table["before"], table["token"])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, KeyError) as error:
        raise BadInput(f"{path} is damaged: train the dictionary again") from error
    return {int(n): Atom(before, token) for n, before, token in zip(*columns, strict=True)}


def latent_rows(found: Comparison, itda: ITDA, atoms: dict[int, Atom]) -> list[LatentRow]:
    """One row per latent, largest increase first."""
    changes = found.changes
    mean_a, mean_b = found.base.totals.mean, found.changed.totals.mean
    frequency_a, frequency_b = found.base.totals.frequency, found.changed.totals.frequency
    places = itda.atom_indices.tolist()
    rows = []
    for rank, latent in enumerate(found.order.tolist(), start=1):
        tested = not np.isnan(changes.p_value[latent])
        error = float(changes.std_error[latent])
        rows.append(
            LatentRow(
                rank,
                latent,
                atoms[latent].token if latent in atoms else None,
                places[latent][0],
                places[latent][1],
                float(mean_a[latent]),
                float(mean_b[latent]),
                float(changes.difference[latent]),
                None if np.isnan(error) else error,
                float(changes.p_value[latent]) if tested else None,
                float(changes.q_value[latent]) if tested else None,
                float(frequency_a[latent]),
                float(frequency_b[latent]),
                float(frequency_b[latent] - frequency_a[latent]),
                int(changes.documents[latent]),
            )
        )
    return rows


def significant(found: Comparison) -> np.ndarray:
    """`[m]` which latents changed, at a false discovery rate of 5 %."""
    return np.nan_to_num(found.changes.q_value, nan=1.0) < SIGNIFICANT


# ── summary ───────────────────────────────────────────────────────────────────────────────────────


def notes(found: Comparison, shares: Shares | None, name_b: str) -> list[str]:
    """What must be said in plain words."""
    fit, said = found.fits["all"], []
    if fit.worse:
        said.append(
            f"The base's dictionary fits {name_b} worse: FVU {float(fit.b.mean):.3f} against "
            f"{float(fit.a.mean):.3f}. What it leaves out is in no latent's difference."
        )
    for word, share in (shares._asdict() if shares else {}).items():
        if share.latents:
            parts = [
                f"{share.share[name]:.0%} {name} (chance {share.chance[name]:.0%}, "
                f"p = {share.p_value[name]:.2g})"
                for name in share.share
            ]
            said.append(
                f"Of the {share.latents} latents of one data set that {word} most, "
                f"{', '.join(parts)}; {share.shared} that all use were passed over."
            )
    return said


def summary(found: Comparison, shares: Shares | None, name_b: str) -> dict[str, Any]:
    """What summary.json says."""
    changes, marked = found.changes, significant(found)
    whose = {key: share._asdict() for key, share in shares._asdict().items()} if shares else None
    return {
        "documents": found.fits["all"].documents,
        "tokens": found.fits["all"].tokens,
        "latents": len(changes.difference),
        "latents_tested": int((~np.isnan(changes.p_value)).sum()),
        "increased": int((marked & (changes.difference > 0)).sum()),
        "decreased": int((marked & (changes.difference < 0)).sum()),
        "false_discovery_rate": SIGNIFICANT,
        "fvu": {name: _fit(fit) for name, fit in found.fits.items()},
        "fits_worse": found.fits["all"].worse,
        "notes": notes(found, shares, name_b),
        "contexts_of_top_latents": whose,
    }


def _fit(fit: Fit) -> dict[str, Any]:
    return {"a": _ends(fit.a), "b": _ends(fit.b), "change": _ends(fit.change)}


def _ends(interval: Interval) -> dict[str, float]:
    return {name: float(value) for name, value in interval._asdict().items()}


# ── figure ────────────────────────────────────────────────────────────────────────────────────────


def figure(found: Comparison, title: str, names: tuple[str, str], colour: str) -> Figure:
    """Differences by rank, both models' means, and how well the dictionary fits them."""
    drawn, axes = plt.subplots(
        1, 3, figsize=(WIDTH_INCHES, 4.8), layout="constrained", width_ratios=(1.2, 1.0, 0.9)
    )
    _draw_ranks(axes[0], found, colour)
    _draw_means(axes[1], found, names, colour)
    _draw_fit(axes[2], found, names, colour)
    drawn.suptitle(title, fontsize=13)
    return drawn


def _draw_ranks(axes: Axes, found: Comparison, colour: str) -> None:
    marked = significant(found)[found.order]
    difference = found.changes.difference[found.order]
    error = 1.96 * found.changes.std_error[found.order]
    rank = np.arange(1, len(difference) + 1)
    axes.axhline(0, color="#999999", lw=0.9, zorder=0)
    axes.fill_between(
        rank, difference - error, difference + error, color="#999999", alpha=0.3, lw=0
    )
    axes.plot(rank[~marked], difference[~marked], ".", color=BASE, ms=3, label="others")
    axes.plot(rank[marked], difference[marked], ".", color=colour, ms=4, label="q < 0.05")
    axes.set(title="Change of each latent", xlabel="rank, largest increase first")
    axes.set_ylabel("change of the mean coefficient")
    axes.legend(loc="lower left", markerscale=2)


def _draw_means(axes: Axes, found: Comparison, names: tuple[str, str], colour: str) -> None:
    marked = significant(found)
    a, b = found.base.totals.mean, found.changed.totals.mean
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    axes.plot([low, high], [low, high], "-", color="#999999", lw=0.9, zorder=0)
    axes.plot(a[~marked], b[~marked], ".", color=BASE, ms=3)
    axes.plot(a[marked], b[marked], ".", color=colour, ms=4)
    axes.set(title="Mean coefficients", xlabel=names[0], ylabel=names[1])


def _draw_fit(axes: Axes, found: Comparison, names: tuple[str, str], colour: str) -> None:
    places = np.arange(len(found.fits))
    for number, (name, shade) in enumerate(zip(names, (BASE, colour), strict=True)):
        ends = [(fit.a, fit.b)[number] for fit in found.fits.values()]
        mean = np.array([float(one.mean) for one in ends])
        reach = [
            np.maximum(0.0, mean - [float(one.low) for one in ends]),
            np.maximum(0.0, [float(one.high) for one in ends] - mean),
        ]
        axes.bar(places + 0.4 * number - 0.2, mean, 0.38, color=shade, label=name)
        axes.errorbar(places + 0.4 * number - 0.2, mean, reach, fmt="none", color="#222222", lw=1)
    axes.set_xticks(places, list(found.fits))
    if any(len(name) > 10 for name in found.fits):
        axes.tick_params(axis="x", rotation=20)
    axes.set(title="What the dictionary leaves out", ylabel="mean FVU")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=1)
