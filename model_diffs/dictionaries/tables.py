"""Table, summary and figure of a comparison in the latents of a dictionary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from model_diffs.core.errors import BadInput
from model_diffs.core.figures import BASE, WIDTH_INCHES
from model_diffs.dictionaries.diffing import Comparison, Fit
from model_diffs.dictionaries.reading import Reading
from model_diffs.dictionaries.sae_dictionary import Dictionary
from model_diffs.dictionaries.sums import ModelTotals
from model_diffs.stats.intervals import Interval

SIGNIFICANT = 0.05
# A latent belongs to the data set that has this share of its activity per token.
OWN = 0.9
SHARED, UNUSED = -1, -2


def latents(found: Comparison, itda: Dictionary, dictionary: str | Path) -> pd.DataFrame:
    """latents.csv: one row per latent, largest increase first, and a column `before`.

    `token` and `before`, the text up to it, are from atoms.csv in the folder `dictionary`, and
    empty without it; `sequence` and `position` are those of an atom, which an SAE has not;
    `std_error` is empty where there is one document, `p_value` and `q_value` where the latent
    occurs in too few documents to be tested.
    """
    path = Path(dictionary) / "atoms.csv"
    atoms = pd.DataFrame(columns=["token", "before"])
    try:
        if path.is_file():
            text = pd.read_csv(path, keep_default_na=False, dtype={"token": str, "before": str})
            text = text.drop_duplicates("latent").set_index("latent")
            atoms = text[["token", "before"]]
    except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        raise BadInput(f"{path} is damaged: train the dictionary again") from error
    atoms = atoms.reindex(range(itda.size))
    base, changed, changes = found.base, found.changed, found.changes
    places = getattr(itda, "atom_indices", None)
    columns = {
        "latent": np.arange(itda.size),
        "token": atoms["token"],
        "sequence": None if places is None else places[:, 0],
        "position": None if places is None else places[:, 1],
        "mean_a": base.mean,
        "mean_b": changed.mean,
        **changes.drop(columns="documents"),
        "frequency_a": base.frequency,
        "frequency_b": changed.frequency,
        "frequency_difference": changed.frequency - base.frequency,
        "documents": changes["documents"],
        "before": atoms["before"],
    }
    table = pd.DataFrame(columns).iloc[found.order]
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table


# ── which data set the latents that changed most belong to ────────────────────────────────────────


SHARE_COLUMNS = (
    *("direction", "number", "dataset", "latents", "skipped"),
    *("share", "chance", "over_chance", "p_value"),
)


class Share(NamedTuple):
    """The latents that changed most in one direction, by the data set that each belongs to."""

    latents: int
    """At most as many as asked for; shared ones are skipped."""
    shared: int
    """How many were skipped."""
    share: dict[str, float]
    """Of the latents, per data set; empty where there is no latent."""
    chance: dict[str, float]
    """The same share of all latents that belong to one data set."""
    p_value: dict[str, float]
    """Probability of as many or more if latents are drawn at random (hypergeometric)."""


def owners(totals: ModelTotals) -> np.ndarray:
    """`[m]` data set that each latent belongs to, SHARED, or UNUSED where the model never uses it.

    Activity is Σ over documents of |Σ coefficients|, per token of the data set, so that a large
    data set does not own more latents for its size.
    """
    tokens = np.bincount(totals.sources, totals.counts, len(totals.activity))
    per_token = totals.activity.numpy() / np.maximum(tokens, 1)[:, None]
    total = per_token.sum(0)
    own = np.where(per_token.max(0) >= OWN * total, per_token.argmax(0), SHARED)
    return np.where(total == 0, UNUSED, own)


def share_of(ranked: np.ndarray, owners: np.ndarray, names: list[str], top: int) -> Share:
    """Owners of the first `top` of the latents `ranked` that belong to one data set."""
    own = np.flatnonzero(owners[ranked] >= 0)[:top]
    chosen = owners[ranked[own]]
    passed = ranked[: own[-1]] if len(own) else ranked
    everywhere = owners[owners >= 0]
    share, chance, p = {}, {}, {}
    for number, name in enumerate(names if len(chosen) else []):
        count, total = int((chosen == number).sum()), int((everywhere == number).sum())
        share[name], chance[name] = count / len(chosen), total / len(everywhere)
        p[name] = float(stats.hypergeom(len(everywhere), total, len(chosen)).sf(count - 1))
    return Share(len(chosen), int((owners[passed] == SHARED).sum()), share, chance, p)


def shares(
    found: Comparison, table: pd.DataFrame, texts: Reading, top: int
) -> dict[str, Share] | None:
    """Of the `top` latents that `fell` (by activity in the base) and that `rose` (in the changed
    model); None for a single data set. `table`: that of `latents`."""
    if len(texts.splits) < 2:
        return None
    fell, rose = table[table["difference"] < 0][::-1], table[table["difference"] > 0]
    return {
        "fell": share_of(fell["latent"].to_numpy(), owners(found.base), texts.names, top),
        "rose": share_of(rose["latent"].to_numpy(), owners(found.changed), texts.names, top),
    }


def share_rows(shares: Mapping[str, Share] | None) -> list[dict[str, Any]]:
    """A row per direction and data set, which are counted from 1 in the order of `--dataset`."""
    return [
        {
            "direction": direction,
            "number": number,
            "dataset": name,
            "latents": one.latents,
            "skipped": one.shared,
            "share": share,
            "chance": one.chance[name],
            "over_chance": share - one.chance[name],
            "p_value": one.p_value[name],
        }
        for direction, one in (shares or {}).items()
        for number, (name, share) in enumerate(one.share.items(), 1)
    ]


# ── summary ───────────────────────────────────────────────────────────────────────────────────────


def notes(fit: Fit, shares: Mapping[str, Share] | None, name_b: str) -> list[str]:
    """What a reader must know, as sentences."""
    said = []
    if fit.worse:
        said.append(
            f"The base's dictionary fits {name_b} worse: FVU {float(fit.b.mean):.3f} against "
            f"{float(fit.a.mean):.3f}. What it leaves out is in no latent's difference."
        )
    for word, one in (shares or {}).items():
        if one.latents:
            parts = [
                f"{one.share[name]:.0%} {name} (chance {one.chance[name]:.0%}, "
                f"p = {one.p_value[name]:.2g})"
                for name in one.share
            ]
            said.append(
                f"Of the {one.latents} latents of one data set that {word} most, "
                f"{', '.join(parts)}; {one.shared} used by several data sets were skipped."
            )
    return said


def summary(
    fits: Mapping[str, Fit],
    table: pd.DataFrame,
    shares: Mapping[str, Share] | None,
    said: list[str],
) -> dict[str, Any]:
    """What summary.json holds; a latent changed at a false discovery rate of 5 %."""
    fit, difference = fits["all"], table["difference"][table["q_value"] < SIGNIFICANT]
    return {
        "documents": fit.documents,
        "tokens": fit.tokens,
        "latents": len(table),
        "latents_tested": int(table["p_value"].count()),
        "increased": int((difference > 0).sum()),
        "decreased": int((difference < 0).sum()),
        "false_discovery_rate": SIGNIFICANT,
        "fvu": {
            name: {key: _ends(getattr(one, key)) for key in ("a", "b", "change")}
            for name, one in fits.items()
        },
        "fits_worse": fit.worse,
        "notes": said,
        "contexts_of_top_latents": shares and {key: s._asdict() for key, s in shares.items()},
    }


def _ends(interval: Interval) -> dict[str, float]:
    return {name: float(value) for name, value in interval._asdict().items()}


# ── figure ────────────────────────────────────────────────────────────────────────────────────────


def figure(
    fits: Mapping[str, Fit], table: pd.DataFrame, title: str, names: tuple[str, str], colour: str
) -> Figure:
    """Differences by rank, both models' means, and how well the dictionary fits them."""
    drawn, (ranks, means, fit) = plt.subplots(
        1, 3, figsize=(WIDTH_INCHES, 4.8), layout="constrained", width_ratios=(1.2, 1.0, 0.9)
    )
    difference, error = table["difference"], 1.96 * table["std_error"]
    band = (difference - error, difference + error)
    ranks.axhline(0, color="#999999", lw=0.9, zorder=0)
    ranks.fill_between(table["rank"], *band, color="#999999", alpha=0.3, lw=0)
    both = table[["mean_a", "mean_b"]].to_numpy()
    ends = [both.min(), both.max()]
    means.plot(ends, ends, "-", color="#999999", lw=0.9, zorder=0)
    marked = table["q_value"] < SIGNIFICANT
    for axes, x, y in ((ranks, "rank", "difference"), (means, "mean_a", "mean_b")):
        axes.plot(x, y, ".", data=table[~marked], color=BASE, ms=3, label="others")
        label = f"q < {SIGNIFICANT}"
        axes.plot(x, y, ".", data=table[marked], color=colour, ms=4, label=label)
    ranks.set(title="Change of each latent", xlabel="rank, largest increase first")
    ranks.set_ylabel("change of the mean coefficient")
    ranks.legend(loc="lower left", markerscale=2)
    means.set(title="Mean coefficients", xlabel=names[0], ylabel=names[1])
    _draw_fit(fit, fits, names, colour)
    drawn.suptitle(title, fontsize=13)
    return drawn


def _draw_fit(axes: Axes, fits: Mapping[str, Fit], names: tuple[str, str], colour: str) -> None:
    """Bars of mean FVU with their intervals, per data set and model."""
    places = np.arange(len(fits))
    for number, (name, shade) in enumerate(zip(names, (BASE, colour), strict=True)):
        intervals = [(fit.a, fit.b)[number] for fit in fits.values()]
        mean, low, high = np.array(intervals, dtype=float).T
        axes.bar(
            places + 0.4 * number - 0.2,
            mean,
            width=0.38,
            color=shade,
            label=name,
            yerr=np.maximum(0.0, [mean - low, high - mean]),
            error_kw={"ecolor": "#222222", "lw": 1},
        )
    axes.set_xticks(places, list(fits))
    if any(len(name) > 10 for name in fits):
        axes.tick_params(axis="x", rotation=20)
    axes.set(title="What the dictionary leaves out", ylabel="mean FVU")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=1)
