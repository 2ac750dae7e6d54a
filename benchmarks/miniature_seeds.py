"""Which measures hold over training seeds? Sets the reports of several runs of one study together.

    uv run benchmarks/miniature_seeds.py outputs ../seed43/outputs ../seed44/outputs

Each outroot holds the report of the miniature study, made from models of another training seed:
in a clone of its own, `uv run create_miniature.py --seed 43`, then `./pipeline.sh` with a copy of
studies/miniature.toml without its `make` line. Prints a table in Markdown: mean ± standard
deviation over the seeds for every model, and whether the measure told every unlearned model from
harmless training in all of them, or which controls refute it.
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
    refuting = {name for row in rows for name in row["refuted_by"].split(", ") if name}
    both = any(row["evidence"].startswith(BOTH_SIDES) for row in rows)
    why = ", ".join([*sorted(refuting), *(["both sides"] if both else [])])
    return f"{word}: {why}" if why else word


def main() -> None:
    """Print the table."""
    outroots = sys.argv[1:]
    if not outroots or outroots[0].startswith("-"):
        print(__doc__)
        return
    found = [read_report(one) for one in outroots]
    models = found[0][0].index
    if any(set(numbers.index) != set(models) for numbers, _ in found):
        raise BadInput(f"{', '.join(outroots)} hold other models: run the same study in each")
    numbers = pd.concat([one for one, _ in found], keys=outroots, names=["seed", "model"])
    short = [str(name).removeprefix("miniature-").removeprefix("base__") for name in models]
    print(f"| measure | {' | '.join(short)} | told apart |\n|{'---|' * (len(models) + 2)}")
    for measure in found[0][1].index.intersection(numbers.columns):
        by_model = numbers[measure].groupby(level="model", sort=False)
        cells = by_model.apply(cell).reindex(models)
        verdict = held([told.loc[measure] for _, told in found])
        print(f"| {measure} | {' | '.join(cells)} | {verdict} |")


if __name__ == "__main__":
    run_script(main)
