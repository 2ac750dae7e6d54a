"""Measures on texts: function, precision, stability, localisation; resampled text by text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_diffs.report.estimates import Estimate, Floats, resampled, weights
from model_diffs.report.reading import Absent, Tables, identity, states
from model_diffs.report.signature import Comparison, Source

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("forget", "retain")
THIRDS = ("early", "middle", "late")
# Options of step 12 that its numbers depend on, beside the texts.
_NOISE = ("epsilon", "num_perturbations", "max_iters", "tol", "seed")


def _sha256(record: Mapping[str, Any], *splits: str) -> list[str]:
    """Which texts a result was measured on."""
    texts = record.get("texts")
    try:
        return [str(texts[split]["sha256"]) for split in splits]  # type: ignore[index]
    except (KeyError, TypeError):
        raise Absent("failed, its run.json does not say on which texts", defect=True) from None


def _argument(record: Mapping[str, Any], name: str) -> Any:
    arguments = record.get("arguments")
    return arguments.get(name) if isinstance(arguments, Mapping) else None


def _options(record: Mapping[str, Any], *names: str) -> list[Any]:
    """What has to agree beside the texts, so that numbers of two runs mean the same."""
    return [_argument(record, name) for name in names]


def _blocks(path: str, rows: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of the hidden states 1, …, N, the outputs of the blocks, of a table of states."""
    states(path, rows["layer"])
    return rows[rows["layer"] >= 1].sort_values("layer")


def _mean_over_blocks(path: str, rows: "pd.DataFrame", column: str, also: str = "") -> Estimate:
    kept = _blocks(path, rows)
    rule = f"mean over layer 1-{len(kept)}{also}"
    return Estimate(float(kept[column].mean()), Source(path, column, rule))


# ── function ──────────────────────────────────────────────────────────────────────────────────────


def relative_movement(tables: Tables, comparison: Comparison, split: str, seed: int) -> Estimate:
    """‖Δh‖/‖h‖ of a split's tokens, mean over the outputs of the blocks."""
    folder = f"{comparison.label}/activation_stats"
    path = f"{folder}/activation_stats.csv"
    rows = tables.table(path, ["layer", "mean_dh_rel"], ["split"], ["split", "layer"])
    mean = _mean_over_blocks(path, rows[rows["split"] == split], "mean_dh_rel", f", split={split}")

    def draw() -> tuple[float, Floats, str]:
        numbers = ["text", "tokens", "mean_dh_rel"]
        part = tables.table(f"{folder}/per_text.csv", numbers, ["split"], ["split", "text"])
        part = part[part["split"] == split]
        tokens = part["tokens"].to_numpy()
        sums = tokens * part["mean_dh_rel"].to_numpy()
        drawn = weights(len(part), seed)
        texts = _sha256(tables.record(folder), split)
        same = identity(texts, part["text"].tolist(), tokens.tolist(), seed)
        return float(sums.sum() / tokens.sum()), (drawn @ sums) / (drawn @ tokens), same

    return resampled(mean.value, mean.source, "texts", draw)


def separation_change(tables: Tables, comparison: Comparison, _: int) -> Estimate:
    """Change of the cosine distance between the splits' centroids, mean over block outputs.

    Resampled by step 8 itself: a text's share in a distance of centroids is not a number.
    """
    folder, column = f"{comparison.label}/activation_separation", "cosine_distance_change"
    path = f"{folder}/separation_changes.csv"
    rows = tables.table(path, ["layer", column], key=["layer"], empty=[column])
    if rows[column].isna().any():
        raise Absent("a centroid is zero and has no direction")
    mean = _mean_over_blocks(path, rows, column)

    def draw() -> tuple[float, Floats, str]:
        numbers = ["resample", column]
        found = tables.table(f"{folder}/separation_resamples.csv", numbers, key=["resample"])
        record = tables.record(folder)
        seed, tokens = _argument(record, "seed"), record.get("tokens")
        same = identity(_sha256(record, *SPLITS), tokens, seed, found["resample"].tolist())
        return mean.value, found[column].to_numpy(), same

    return resampled(mean.value, mean.source, "texts", draw)


def covariance_change(tables: Tables, comparison: Comparison, split: str) -> Estimate:
    """How far the spectrum of a split's states moved in shape, mean over block outputs."""
    path = f"{comparison.label}/activation_covariance/covariance_metrics.csv"
    column = f"{split}_wasserstein_normalised"
    rows = tables.table(path, ["layer", column], key=["layer"], empty=[column])
    if _blocks(path, rows)[column].isna().any():
        raise Absent("a spectrum is zero and has no shape")
    return _mean_over_blocks(path, rows, column)


# ── precision ─────────────────────────────────────────────────────────────────────────────────────


def _by_text(rows: "pd.DataFrame", names: list[str], columns: list[str]) -> list[Floats]:
    """Columns of per_text.csv as `[texts, matrices]`, for matrices of these names."""
    part = rows[rows["name"].isin(names)].sort_values(["name", "text"])
    texts = part["text"].nunique()
    positions = part["text"].to_numpy().reshape(-1, max(texts, 1))
    if len(part) != texts * len(names) or (positions != positions[0]).any():
        raise Absent("failed, per_text.csv has not every text and matrix", defect=True)
    return [part[column].to_numpy().reshape(-1, texts).T for column in columns]


def selectivity(
    tables: Tables, comparison: Comparison, column: str, sums: tuple[str, ...], seed: int
) -> Estimate:
    """Forget over retain of one of step 11's means, mean over the changed MLP matrices."""
    folder = f"{comparison.label}/row_space_projection"
    path = f"{folder}/projection_metrics.csv"
    rows = tables.table(path, [column], ["name"], ["name"], empty=[column])
    rows = rows[rows[column].notna()]
    if rows.empty:
        raise Absent("no MLP matrix changed")
    names = sorted(rows["name"])
    value = float(rows[column].mean())
    source = Source(path, column, f"mean over {len(names)} changed MLP matrices")

    def draw() -> tuple[float, Floats, str]:
        table = f"{folder}/per_text.csv"
        found = tables.table(table, ["text", *sums], ["split", "name"], ["split", "name", "text"])
        quotients: list[Floats] = []
        record = tables.record(folder)
        parts = [record.get("tokens"), _sha256(record, *SPLITS), _options(record, "top_k")]
        # The splits are drawn apart, with the seeds of the step.
        for split, own in zip(SPLITS, (seed, seed + 1), strict=True):
            part = found[found["split"] == split]
            above, below = _by_text(part, names, list(sums))
            drawn = np.concatenate([np.ones((1, len(above))), weights(len(above), own)])
            counted = drawn @ below
            quotients.append(np.divide(drawn @ above, counted, where=counted > 0,
                                       out=np.full_like(counted, np.nan)))  # fmt: skip
            parts += [sorted(set(part["text"].tolist())), own]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = (quotients[0] / quotients[1]).mean(1)
        return float(means[0]), means[1:], identity(*parts)

    return resampled(value, source, "texts", draw)


# ── stability ─────────────────────────────────────────────────────────────────────────────────────


def sensitivity_ratio(
    tables: Tables, comparison: Comparison, column: str, split: str, seed: int
) -> Estimate:
    """Mean of a sensitivity over a split's texts, changed model over base."""
    folder = f"{comparison.label}/lipschitzness"
    path = f"{folder}/per_text.csv"
    rows = tables.table(path, ["text", "tokens", column], ["model", "data"])
    # The base's rows come first; a model against itself has one name twice.
    half = len(rows) // 2
    base, changed = (
        part[part["data"] == split].sort_values("text") for part in (rows[:half], rows[half:])
    )
    same = base["text"].tolist() == changed["text"].tolist() and base["text"].is_unique
    named = set(base["model"]) == {comparison.base}, set(changed["model"]) == {comparison.changed}
    if base.empty or not same or not all(named):
        raise Absent(f"failed, {path} has not the same texts of both models", defect=True)
    a, b = base[column].to_numpy(), changed[column].to_numpy()
    if a.mean() <= 0 or b.mean() <= 0:
        raise Absent(f"{column} is zero: there is no ratio")
    models = f"data={split}, model={comparison.changed} over model={comparison.base}"
    source = Source(path, column, f"mean over {len(a)} rows of {models}")

    def draw() -> tuple[float, Floats, str]:
        drawn = weights(len(a), seed)
        record = tables.record(folder)
        texts = _sha256(record, split), base["text"].tolist(), base["tokens"].tolist()
        ratios = (drawn @ b) / (drawn @ a)
        return b.mean() / a.mean(), ratios, identity(texts, _options(record, *_NOISE), seed)

    return resampled(float(b.mean() / a.mean()), source, "texts", draw)


# ── localisation ──────────────────────────────────────────────────────────────────────────────────


def third_of(state: int, blocks: int) -> str:
    """In which third of the depth the middle of the block lies that gives hidden state 1, …, N."""
    return THIRDS[min(2, 3 * (2 * state - 1) // (2 * blocks))]


class _Probes(NamedTuple):
    """A model's probes in some hidden states."""

    path: str
    auc: float
    layers: list[int]
    design: str
    """Of texts, folds and draws."""


def _probes(tables: Tables, model: str, third: str) -> _Probes:
    folder = f"{model}/linear_probes"
    path = f"{folder}/probe_results.csv"
    rows = _blocks(path, tables.table(path, ["layer", "auc"], key=["layer"]))
    layers = [int(n) for n in rows["layer"] if third_of(int(n), len(rows)) == third]
    if not layers:
        raise Absent(f"the model has {len(rows)} blocks, none in the {third} third")
    record = tables.record(folder)
    options = _options(record, "seed", "folds", "C", "no_standardize")
    design = identity(_sha256(record, *SPLITS), record.get("tokens"), options)
    mean = float(rows.loc[rows["layer"].isin(layers), "auc"].mean())
    return _Probes(path, mean, layers, design)


def _resampled_auc(tables: Tables, model: str, layers: list[int]) -> Floats:
    path = f"{model}/linear_probes/auc_resamples.csv"
    rows = tables.table(path, ["layer", "resample", "auc"], key=["layer", "resample"])
    rows = rows[rows["layer"].isin(layers)]
    if not (rows.groupby("resample").size() == len(layers)).all() or rows.empty:
        raise Absent(f"failed, {path} has not every layer and resample", defect=True)
    return rows.groupby("resample")["auc"].mean().sort_index().to_numpy()


def probe_change(tables: Tables, comparison: Comparison, third: str) -> Estimate:
    """Change of the probes' AUC, mean over the block outputs of one third of the depth."""
    base, changed = (
        _probes(tables, model, third) for model in (comparison.base, comparison.changed)
    )
    if base.design != changed.design or base.layers != changed.layers:
        raise Absent("probed on other texts, or with other options, than the base", defect=True)
    where = f"mean over layer {changed.layers[0]}-{changed.layers[-1]}"
    source = Source(changed.path, "auc", f"{where}, less that of {base.path}")

    def draw() -> tuple[float, Floats, str]:
        a, b = (
            _resampled_auc(tables, model, base.layers)
            for model in (comparison.base, comparison.changed)
        )
        if len(a) != len(b):
            raise Absent("base and changed model have not the same resamples", defect=True)
        return changed.auc - base.auc, b - a, base.design

    return resampled(changed.auc - base.auc, source, "texts", draw)
