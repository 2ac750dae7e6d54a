"""Which settings make a method forget at the least cost? Chosen on the questions of fold `tune`.

    uv run benchmarks/choose_unlearning.py
    uv run benchmarks/choose_unlearning.py --methods npo --place artifacts/choices

Each of the settings below makes a model of the miniature's base. Of those that keep at least 0.95
of the base's general and 0.85 of its adjacent accuracy, the one with the fewest right answers on
hazards of fold `tune` is starred, as in studies/miniature.toml; held-out hazards are not looked at.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_diffs.core.options import option, parse
from model_diffs.core.script import execute, run_script
from model_diffs.core.step import SCRIPTS, load_script

DATA = "data/miniature"
SMALL = {"batch-size": ("16",)}
RATES = ("5e-4", "1e-3", "1.5e-3")
BLOCKS = {**SMALL, "layer-id": ("1,2",), "epochs": ("2",)}
REROUTE = {**BLOCKS, "cb-target": ("orthogonal",), "alpha": ("3", "5"), "lr": ("2e-3", "3e-3")}
GRIDS: dict[str, dict[str, tuple[str, ...]]] = {
    "npo": {**SMALL, "beta": ("0.5",), "retain-weight": ("1", "3"), "lr": RATES},
    "rmu": {**BLOCKS, "steering-coeff": ("auto",), "alpha": ("10", "20"), "lr": ("1e-3", "2e-3")},
    "cb": REROUTE,
    "cb_lat": REROUTE,
    "ga": {**SMALL, "retain-weight": ("1", "3"), "lr": RATES},
    "grad_diff": {**SMALL, "forget-weight": ("0.3", "1"), "lr": RATES},
    "dpo": {**SMALL, "beta": ("0.5", "1"), "lr": ("1e-4", "2e-4", "3e-4", "5e-4")},
    "simnpo": {**SMALL, "beta": ("0.5",), "retain-weight": ("1", "3"), "lr": RATES},
    "lat": {
        **SMALL,
        "layer-id": ("1,2",),
        "retain-weight": ("2.5", "5"),
        "lr": ("7e-4", "1.2e-3"),
    },
}
KEPT = {"general": 0.95, "adjacent": 0.85}
"""Least share of the base's accuracy: agents share their names with the hazards."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices."""

    methods: tuple[str, ...] = option(tuple(GRIDS), "methods to choose settings for")
    base: str = option("models/miniature-base", "the model that is made to forget")
    place: str = option("artifacts/choices", "folder of the models", written=True)


def settings(method: str) -> Iterator[dict[str, str]]:
    """Every combination of a method's grid."""
    grid = GRIDS[method]
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def scores(method: str, chosen: dict[str, str], options: Options) -> dict[str, float]:
    """Accuracies of the model that these settings make, as measured when it was made."""
    name = "_".join([method, *(f"{k}{v}" for k, v in chosen.items() if len(GRIDS[method][k]) > 1)])
    folder = Path(options.place, name)
    words = ["--model", options.base, "--method", method, "--outdir", str(folder)]
    words += ["--forget-text", f"{DATA}/forget.txt", "--retain-text", f"{DATA}/retain.txt"]
    words += ["--questions", f"{DATA}/questions.jsonl"]
    words += [word for key, value in chosen.items() for word in (f"--{key}", value)]
    execute(load_script(SCRIPTS / "unlearn.py"), words)
    found = json.loads((folder / "unlearning.json").read_text(encoding="utf-8"))
    kept = {
        domain: found["after"][f"{domain}_accuracy"] / found["before"][f"{domain}_accuracy"]
        for domain in KEPT
    }
    return {"tune": found["after"]["hazard_tune_accuracy"], **kept}


def main() -> None:
    """Print every setting, the chosen ones starred."""
    options = parse(Options, None, __doc__)
    for method in options.methods:
        rows = [(scores(method, one, options), one) for one in settings(method)]
        keeping = [row for row in rows if all(row[0][d] >= least for d, least in KEPT.items())]
        best = min(keeping, key=lambda row: row[0]["tune"], default=None)
        print(f"\n{method:8} hazards of fold tune; shares kept of {' and '.join(KEPT)}")
        for row in rows:
            said = ", ".join(f"{key} {value}" for key, value in row[1].items())
            star = "*" if row is best else " "
            print(star, "  ".join(f"{value:.3f}" for value in row[0].values()), "", said)


if __name__ == "__main__":
    run_script(main)
