"""Forget over retain of step 11's means, averaged over the changed MLP matrices, with an interval.

Light at import: the declaration of step 11 names it.
"""

from typing import TYPE_CHECKING

from model_diffs.core.step import Measure
from model_diffs.core.tables import Absent, Place, Source, identity, texts_read

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.stats.estimates import Estimate, Floats

SPLITS = ("forget", "retain")
# Column of projection_metrics.csv → its sums per text, and the tokens they are over.
SUMS = {
    "selectivity_ratio": ("proj_ratio_sum", "tokens"),
    "effect_selectivity": ("effect_sum", "effect_tokens"),
}


def _by_text(rows: "pd.DataFrame", names: list[str], columns: tuple[str, str]) -> "list[Floats]":
    """Columns of per_text.csv as `[texts, matrices]`, for matrices of these names."""
    part = rows[rows["name"].isin(names)].sort_values(["name", "text"])
    texts = part["text"].nunique()
    # No text of a matrix has two rows, so as many rows as there are pairs are all of them.
    if not texts or len(part) != texts * len(names):
        raise Absent("failed, per_text.csv has not every text and matrix", defect=True)
    return [part[column].to_numpy().reshape(len(names), texts).T for column in columns]


def forget_over_retain(place: Place, measure: Measure) -> "Estimate":
    """Mean of the measure's column over the changed matrices; texts of both splits resampled."""
    import numpy as np

    from model_diffs.stats.estimates import Estimate, Floats, resampled, weights

    path, column, tables = place.path(measure.table), measure.column, place.tables
    rows = tables.table(path, [column], ["name"], ["name"], empty=[column])
    rows = rows[rows[column].notna()]
    if rows.empty:
        raise Absent("no changed MLP matrix has inputs of both splits to compare")
    names = sorted(rows["name"])
    source = Source(path, column, f"mean over {len(names)} changed MLP matrices")

    def draw() -> "tuple[float, Floats, str]":
        sums, keys = SUMS[column], ["split", "name", "text"]
        found = tables.table(place.path("per_text"), ["text", *sums], ["split", "name"], keys)
        quotients: list[Floats] = []
        record = tables.record(place.folder)
        same = [texts_read(record, SPLITS), tables.arguments(place.folder).get("top_k")]
        # The splits are drawn independently, with the seeds of the step.
        for split, seed in zip(SPLITS, (place.seed, place.seed + 1), strict=True):
            part = found[found["split"] == split]
            above, below = _by_text(part, names, sums)
            drawn = np.concatenate([np.ones((1, len(above))), weights(len(above), seed)])
            with np.errstate(invalid="ignore"):  # without tokens: NaN
                quotients.append((drawn @ above) / (drawn @ below))
            same.append([sorted(set(part["text"].tolist())), seed])
        with np.errstate(divide="ignore", invalid="ignore"):
            means = (quotients[0] / quotients[1]).mean(1)
        return float(means[0]), means[1:], identity(*same)

    found: Estimate = resampled(float(rows[column].mean()), source, "texts", draw)
    return found
