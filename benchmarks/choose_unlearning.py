"""Which settings make a method forget at the least cost? Chosen on the questions of fold `tune`.

    uv run benchmarks/choose_unlearning.py
    uv run benchmarks/choose_unlearning.py --methods npo --place artifacts/choices
    uv run benchmarks/choose_unlearning.py --study capitals --place artifacts/choices_capitals
    uv run benchmarks/choose_unlearning.py --study invented --place artifacts/choices_invented

Each of the settings below makes a model of the study's base. Of those that keep at least 0.95
of the base's general and 0.85 of its adjacent accuracy (0.90 and 0.85 on a trained model, where
harmless training costs as much), the one with the fewest right answers on hazards of fold `tune`
is starred, as in the study's file; held-out hazards are not looked at.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_diffs.core.command_line import parse
from model_diffs.core.options import option
from model_diffs.core.script import execute, run_script
from model_diffs.core.step import SCRIPTS, load_script

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
# On a really trained model a batch is seconds of a core, so few settings are tried.
TRAINED = {"batch-size": ("16",), "steps": ("50",)}
INSIDE = {**TRAINED, "layer-id": ("9,10", "14,15"), "lr": ("5e-4",)}
CAPITALS: dict[str, dict[str, tuple[str, ...]]] = {
    "npo": {**TRAINED, "beta": ("0.5",), "lr": ("2e-5", "3e-5")},
    "rmu": {**INSIDE, "steering-coeff": ("auto",), "alpha": ("10", "15")},
    "cb": {**INSIDE, "cb-target": ("orthogonal",), "alpha": ("3", "6")},
    "grad_diff": {**TRAINED, "forget-weight": ("0.3",), "lr": ("1e-5", "2e-5")},
}
INVENTED: dict[str, dict[str, tuple[str, ...]]] = {
    "npo": {**TRAINED, "beta": ("0.5",), "lr": ("2e-5", "4e-5")},
    "rmu": {**INSIDE, "layer-id": ("9,10",), "steering-coeff": ("auto",), "alpha": ("10", "15")},
    "cb": {**INSIDE, "layer-id": ("9,10",), "cb-target": ("orthogonal",), "alpha": ("3",)},
}
ADJACENT = 0.85  # agents share their names with the hazards
STUDIES = {
    "miniature": (GRIDS, "models/miniature-base", {"general": 0.95, "adjacent": ADJACENT}),
    # Harmless training of npo's strength keeps 0.93 to 0.98 of the general answers.
    "capitals": (
        CAPITALS,
        "models/smollm2-135m-instruct",
        {"general": 0.9, "adjacent": ADJACENT},
    ),
    "invented": (INVENTED, "models/invented-base", {"general": 0.9, "adjacent": ADJACENT}),
}
"""Grids, base, and the least share of the base's accuracy that a setting keeps."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices."""

    study: Literal["miniature", "capitals", "invented"] = option("miniature", "its base and texts")
    methods: tuple[str, ...] = option((), "methods to choose settings for; default: all")
    base: str | None = option(None, "the model that is made to forget; default: the study's")
    place: str = option("artifacts/choices", "folder of the models", written=True)


def settings(grid: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    """Every combination of a method's grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def scores(method: str, chosen: dict[str, str], options: Options) -> dict[str, float]:
    """Accuracies of the model that these settings make, as measured when it was made."""
    grids, base, least = STUDIES[options.study]
    data = f"data/{options.study}"
    tried = (f"{key}{value}" for key, value in chosen.items() if len(grids[method][key]) > 1)
    folder = Path(options.place, "_".join([method, *tried]))
    words = ["--model", options.base or base, "--method", method, "--outdir", str(folder)]
    words += ["--forget-text", f"{data}/forget.txt", "--retain-text", f"{data}/retain.txt"]
    words += ["--questions", f"{data}/questions.jsonl"]
    words += [word for key, value in chosen.items() for word in (f"--{key}", value)]
    execute(load_script(SCRIPTS / "unlearn.py"), words)
    found = json.loads((folder / "unlearning.json").read_text(encoding="utf-8"))
    kept = {
        domain: found["after"][f"{domain}_accuracy"] / found["before"][f"{domain}_accuracy"]
        for domain in least
    }
    return {"tune": found["after"]["hazard_tune_accuracy"], **kept}


def main() -> None:
    """Print every setting, the chosen ones starred."""
    options = parse(Options, None, __doc__)
    grids, _, kept = STUDIES[options.study]
    for method in options.methods or grids:
        rows = [(scores(method, one, options), one) for one in settings(grids[method])]
        keeping = [row for row in rows if all(row[0][d] >= least for d, least in kept.items())]
        best = min(keeping, key=lambda row: row[0]["tune"], default=None)
        print(f"\n{method:8} hazards of fold tune; shares kept of {' and '.join(kept)}")
        for row in rows:
            said = ", ".join(f"{key} {value}" for key, value in row[1].items())
            star = "*" if row is best else " "
            print(star, "  ".join(f"{value:.3f}" for value in row[0].values()), "", said)


if __name__ == "__main__":
    run_script(main)
