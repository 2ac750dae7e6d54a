"""Does a run repeat? Counts the numbers of one report that another run of the same study gives.

    uv run benchmarks/miniature_again.py outputs ../again/outputs

Both outroots hold the report of one study, made with the same seeds, on another machine, by another
number of threads, or beside other work. Prints how many numbers agree to five digits, and how many
of those with a 95 % interval lie within it in the second run. At least 90 % should.
"""

import sys
from pathlib import Path

import numpy as np

from model_diffs.core.script import run_script
from model_diffs.core.tables import read_table

DIGITS = 1e-5
"""Relative difference up to which two numbers are the same."""


def main() -> None:
    """Print the counts, and the cells whose new number is outside the interval."""
    if len(sys.argv) != 3:
        print(__doc__)
        return
    first, again = (
        read_table(Path(one) / "report/signature.csv", "run the study first").set_index("changed")
        for one in sys.argv[1:]
    )
    first, again = (one.select_dtypes("number") for one in (first, again))
    shared = [name for name in first if name in again and not name.endswith(("_low", "_high"))]
    numbers = same = bounded = held = 0
    for name in shared:
        for model in first.index.intersection(again.index):
            old, new = float(first.loc[model, name]), float(again.loc[model, name])
            if np.isnan([old, new]).any():
                continue
            numbers += 1
            same += bool(np.isclose(old, new, rtol=DIGITS, atol=1e-9))
            if f"{name}_low" not in first or np.isnan(first.loc[model, f"{name}_low"]):
                continue
            bounded += 1
            low, high = (float(first.loc[model, f"{name}_{end}"]) for end in ("low", "high"))
            if low - 1e-9 <= new <= high + 1e-9:
                held += 1
            else:
                print(f"{model}, {name}: {old:.4g} ({low:.4g} to {high:.4g}), then {new:.4g}")
    print(f"{same} of {numbers} numbers agree to five digits")
    print(f"{held} of {bounded} intervals ({held / max(bounded, 1):.1%}) hold the new number")


if __name__ == "__main__":
    run_script(main)
