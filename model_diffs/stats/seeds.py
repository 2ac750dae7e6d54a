"""Means over models that differ only in their training seed."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def entry_of(name: str) -> str:
    """A model's name without its training seed: `npo` of `npo__seed1337`."""
    return re.sub(r"__seed-?\d+$", "", name)


def over_seeds(table: "pd.DataFrame") -> "pd.DataFrame":
    """Mean and standard deviation (n − 1) of each measure over an entry's training seeds.

    `table`: four columns that name a comparison (`base` and `changed` among them), then measures
    and their `_low` and `_high`. Rows are entries with at least two seeds, `…__seedN` in the
    folder's name; columns `base, changed, seeds`, then `<key>_mean, <key>_std`.
    """
    keys = [name for name in table.columns[4:] if not name.endswith(("_low", "_high"))]
    entry = table["changed"].map(entry_of)
    if not keys:
        return table.iloc[:0].assign(seeds=0)
    groups = table[entry != table["changed"]].groupby(["base", entry.rename("entry")])
    found = groups[keys].agg(["mean", "std"])
    found.columns = ["_".join(names) for names in found.columns]
    found.insert(0, "seeds", groups.size())
    return found[found["seeds"] > 1].reset_index().rename(columns={"entry": "changed"})
