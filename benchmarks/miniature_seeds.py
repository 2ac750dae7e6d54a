"""Which measures hold over training seeds? Sets the reports of several runs of one study together.

    uv run benchmarks/miniature_seeds.py outputs ../seed43/outputs ../seed44/outputs

Each outroot holds the report of the miniature study, made from models of another training seed:
in a clone of its own, `uv run create_miniature.py --seed 43`, then `./pipeline.sh` with a copy of
studies/miniature.toml without its `make` line. Prints two tables in Markdown, mean ± standard
deviation over the seeds: what the relearning attack brings back of each model; and every measure,
with whether it told every unlearned model from harmless training in all runs, or which controls
refute it.
"""

import sys
from pathlib import Path

import pandas as pd

from model_diffs.core.errors import BadInput
from model_diffs.core.script import run_script
from model_diffs.core.tables import read_table
from model_diffs.report.verdicts import BOTH_SIDES


def read_report(outroot: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Numbers of one outroot, `[model, measure]`, and of each measure verdict and refuters."""
    folder = Path(outroot) / "report"
    table = read_table(folder / "signature.csv", "run the study first")
    verdicts = read_table(folder / "measures.csv", "run report.py --force")
    measures = [name for name in verdicts["measure"] if name in table]
    numbers = table[measures].set_axis(table["changed"])
    return numbers.astype(float), verdicts.set_index("measure").fillna("")


def cell(values: "pd.Series[float]") -> str:
    """Mean ± standard deviation; empty where a seed has no number."""
    if values.isna().any():
        return ""
    digits = 1 if abs(values.mean()) >= 10 else 2
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def held(rows: list["pd.Series[str]"]) -> str:
    """Verdicts of all seeds in one, and the controls that refute them."""
    said = [row["verdict"] for row in rows]
    word = said[0] if len(set(said)) == 1 else f"{said.count('yes')} of {len(said)}"
    refuting = {short_name(name) for row in rows for name in row["refuted_by"].split(", ") if name}
    both = any(row["evidence"].startswith(BOTH_SIDES) for row in rows)
    why = ", ".join([*sorted(refuting), *(["both sides"] if both else [])])
    return f"{word}: {why}" if why else word


COLUMNS = {
    "before": ("facts", "start_heldout_accuracy"),
    "facts: attacked": ("facts", "attack_accuracy"),
    "facts: held-out": ("facts", "heldout_accuracy"),
    "facts, over filtered": ("facts", "heldout_over_filtered"),
    "retain: step": ("retain", "step"),
    "retain: held-out": ("retain", "heldout_accuracy"),
    "retain, over filtered": ("retain", "heldout_over_filtered"),
}
"""Of the table of the attack: arm and column of relearning_summary.csv."""


def short_name(label: str) -> str:
    """A model's name in the tables."""
    return label.removeprefix("miniature-").removeprefix("base__")


def print_attack(outroots: list[str]) -> None:
    """What each arm brings back at the rate and step picked; empty where a run did not test it."""
    read = [
        read_table(Path(one) / "relearning/relearning_summary.csv", "run step 14 first")
        for one in outroots
    ]
    found = pd.concat(read).set_index(["model", "arm"])
    print(f"| model | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for model in dict.fromkeys(found.index.get_level_values("model")):
        rows = [found.loc[(model, arm), column] for arm, column in COLUMNS.values()]
        print(f"| {short_name(str(model))} | {' | '.join(map(cell, rows))} |")
    print()


def main() -> None:
    """Print the tables."""
    outroots = sys.argv[1:]
    if not outroots or outroots[0].startswith("-"):
        print(__doc__)
        return
    print_attack(outroots)
    found = [read_report(one) for one in outroots]
    models = found[0][0].index
    if any(set(numbers.index) != set(models) for numbers, _ in found):
        raise BadInput(f"{', '.join(outroots)} hold other models: run the same study in each")
    numbers = pd.concat([one for one, _ in found], keys=outroots, names=["seed", "model"])
    short = [short_name(str(name)) for name in models]
    print(f"| measure | {' | '.join(short)} | told apart |\n|{'---|' * (len(models) + 2)}")
    for measure in found[0][1].index.intersection(numbers.columns):
        by_model = numbers[measure].groupby(level="model", sort=False)
        cells = by_model.apply(cell).reindex(models)
        verdict = held([told.loc[measure] for _, told in found])
        print(f"| {measure} | {' | '.join(cells)} | {verdict} |")


if __name__ == "__main__":
    run_script(main)
