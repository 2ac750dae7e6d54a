"""Measures of the weights: magnitude, location, geometry. Exact: two readers find the same."""

from typing import TYPE_CHECKING

import numpy as np

from model_diffs.report.estimates import Estimate
from model_diffs.report.reading import NOT_RUN, Absent, Tables
from model_diffs.report.signature import Comparison, Source

if TYPE_CHECKING:
    import pandas as pd

UNCHANGED = "no weight of the blocks changed, so the change has no shape"


def _path(comparison: Comparison, table: str) -> str:
    return f"{comparison.label}/{table}"


def _matrices(tables: Tables, comparison: Comparison, *columns: str) -> "pd.DataFrame":
    path = _path(comparison, "param_stats/per_matrix.csv")
    numbers = ("layer", "dW_fro", *columns)
    return tables.table(path, numbers, ["name"], ["name"], empty=["dW_stable_rank"])


def _counted(rows: "pd.DataFrame") -> str:
    return f"{len(rows)} {'matrix' if len(rows) == 1 else 'matrices'}"


# ── magnitude ─────────────────────────────────────────────────────────────────────────────────────


def relative_change(tables: Tables, comparison: Comparison) -> Estimate:
    """√(Σ‖ΔW‖² / Σ‖W‖²) over all matrices."""
    rows = _matrices(tables, comparison, "W_fro")
    whole = float((rows["W_fro"] ** 2).sum())
    if whole == 0:
        raise Absent("every matrix of the base is zero")
    source = Source(
        _path(comparison, "param_stats/per_matrix.csv"),
        "dW_fro",
        f"√(Σ dW_fro² / Σ W_fro²) over all {_counted(rows)}",
    )
    return Estimate(float(np.sqrt((rows["dW_fro"] ** 2).sum() / whole)), source)


def changed_share(tables: Tables, comparison: Comparison) -> Estimate:
    """Share of all entries whose stored values differ."""
    rows = _matrices(tables, comparison, "changed_fraction", "shape0", "shape1")
    if rows.empty:
        raise Absent("there is no matrix")
    source = Source(
        _path(comparison, "param_stats/per_matrix.csv"),
        "changed_fraction",
        f"mean over all {_counted(rows)}, each by shape0 · shape1",
    )
    entries = rows["shape0"] * rows["shape1"]
    return Estimate(float(np.average(rows["changed_fraction"], weights=entries)), source)


# ── location ──────────────────────────────────────────────────────────────────────────────────────


def _layers(tables: Tables, comparison: Comparison, *columns: str) -> "pd.DataFrame":
    path = _path(comparison, "param_stats/per_layer.csv")
    numbers = ("layer", "dW_fro_layer", *columns)
    rows = tables.table(path, numbers, ["group"], ["layer", "group"])
    return rows[rows["layer"] >= 0]


def mlp_attention_ratio(tables: Tables, comparison: Comparison) -> Estimate:
    """Relative change of all MLPs over that of all attention."""
    rows = _layers(tables, comparison, "W_fro_layer")
    relative = {}
    path, blocks = _path(comparison, "param_stats/per_layer.csv"), rows["layer"].nunique()
    for group in ("mlp", "attn"):
        part = rows[rows["group"] == group]
        if not blocks or sorted(part["layer"]) != list(range(blocks)):
            raise Absent(f"failed, {path} has not the {group} of every block", defect=True)
        whole = float((part["W_fro_layer"] ** 2).sum())
        if whole == 0:
            raise Absent(f"every {group} matrix of the base is zero")
        relative[group] = float(np.sqrt((part["dW_fro_layer"] ** 2).sum() / whole))
    if relative["attn"] == 0 or relative["mlp"] == 0:
        changed = [group for group, found in relative.items() if found]
        raise Absent(f"only {changed[0]} changed: there is no ratio" if changed else UNCHANGED)
    source = Source(
        path,
        "dW_fro_layer",
        "√(Σ dW_fro_layer² / Σ W_fro_layer²) over blocks, group=mlp over group=attn",
    )
    return Estimate(relative["mlp"] / relative["attn"], source)


def half_depth(tables: Tables, comparison: Comparison) -> Estimate:
    """Depth up to which half of the blocks' Σ‖ΔW‖² lies, 0 before the first, 1 after the last.

    Within a block it is taken as spread evenly.
    """
    path = _path(comparison, "param_stats/per_layer.csv")
    rows = _layers(tables, comparison)
    energy = (rows["dW_fro_layer"] ** 2).groupby(rows["layer"]).sum().sort_index()
    blocks = len(energy)
    if list(energy.index) != list(range(blocks)) or not blocks:
        raise Absent(f"failed, {path} has not every block", defect=True)
    if energy.sum() == 0:
        raise Absent(UNCHANGED)
    sizes = energy.to_numpy()
    reached, half = np.cumsum(sizes), energy.sum() / 2
    block = int(np.argmax(reached >= half))
    inside = 1 - (reached[block] - half) / sizes[block]
    source = Source(path, "dW_fro_layer", f"where Σ dW_fro_layer² over layer 0-{blocks - 1} halves")
    return Estimate(float(block + inside) / blocks, source)


# ── geometry ──────────────────────────────────────────────────────────────────────────────────────


def stable_rank(tables: Tables, comparison: Comparison) -> Estimate:
    """Stable rank of ΔW, mean over the blocks' changed matrices, each by its ‖ΔW‖²."""
    rows = _matrices(tables, comparison, "dW_stable_rank")
    rows = rows[(rows["layer"] >= 0) & rows["dW_stable_rank"].notna() & (rows["dW_fro"] > 0)]
    if rows.empty:
        raise Absent(UNCHANGED)
    source = Source(
        _path(comparison, "param_stats/per_matrix.csv"),
        "dW_stable_rank",
        f"mean over {_counted(rows)} of blocks, each by dW_fro²",
    )
    return Estimate(float(np.average(rows["dW_stable_rank"], weights=rows["dW_fro"] ** 2)), source)


def _shape_of_change(tables: Tables, comparison: Comparison, column: str) -> Estimate:
    """A column of step 7 over the blocks' changed matrices, each by its ‖ΔW‖² from step 1."""
    path = _path(comparison, "null_space_analysis/null_space_results.csv")
    rows = tables.table(path, ["layer", column], ["name"], ["name"], empty=[column])
    rows = rows[(rows["layer"] >= 0) & rows[column].notna()]
    if rows.empty:
        raise Absent(UNCHANGED)
    try:
        sizes = _matrices(tables, comparison).set_index("name")["dW_fro"] ** 2
    except Absent as error:
        if error.reason != NOT_RUN:
            raise
        raise Absent("weighing matrices needs their ‖ΔW‖ from step 1") from None
    energy = sizes.reindex(rows["name"])
    if energy.isna().any() or energy.sum() == 0:
        raise Absent(f"failed, {path} and param_stats name other matrices", defect=True)
    rule = f"mean over {_counted(rows)} of blocks, each by dW_fro² of param_stats/per_matrix.csv"
    source = Source(path, column, rule)
    return Estimate(float(np.average(rows[column], weights=energy)), source)


def effective_rank(tables: Tables, comparison: Comparison) -> Estimate:
    """Directions with 99 % of ‖ΔW‖²."""
    return _shape_of_change(tables, comparison, "effective_rank")


def top10_share(tables: Tables, comparison: Comparison) -> Estimate:
    """Share of ‖ΔW‖² in its ten largest directions."""
    return _shape_of_change(tables, comparison, "top10_variance_ratio")


def subspace_alignment(tables: Tables, comparison: Comparison) -> Estimate:
    """Mean cosine of the leading left subspaces before and after, over the blocks' matrices."""
    path = _path(comparison, "null_space_analysis/null_space_results.csv")
    rows = tables.table(path, ["layer", "subspace_alignment"], ["name"], ["name"])
    rows = rows[rows["layer"] >= 0]
    if rows.empty:
        raise Absent("no matrix of a block was looked at")
    source = Source(path, "subspace_alignment", f"mean over {_counted(rows)} of blocks")
    return Estimate(float(rows["subspace_alignment"].mean()), source)


def nullspace_ratio(tables: Tables, comparison: Comparison) -> Estimate:
    """Energy that ΔW writes outside W's column space over what a random ΔW would."""
    path = _path(comparison, "mlp_nullspace/mlp_nullspace_metrics.csv")
    shares = ["nullspace_energy", "random_nullspace_energy"]
    rows = tables.table(path, [*shares, "update_norm"], ["name"], ["name"], empty=shares)
    rows = rows[rows["update_norm"] > 0]
    if rows.empty:
        raise Absent("no MLP matrix changed")
    if rows[shares].isna().any().any():
        raise Absent(f"failed, {path} lacks shares of a matrix that changed", defect=True)
    energy = rows["update_norm"] ** 2
    outside, random = (float((rows[column] * energy).sum()) for column in shares)
    if random == 0:
        raise Absent("the base's matrices leave nothing outside their column spaces")
    rule = "Σ nullspace_energy · update_norm² / Σ random_nullspace_energy · update_norm²"
    source = Source(path, shares[0], f"{rule} over {_counted(rows)}")
    return Estimate(outside / random, source)
