"""What carries over from the miniature to a model that was really trained? A table of both studies.

    uv run benchmarks/side_by_side.py --left outputs/report/signature.csv \\
        --right outputs/capitals/report/signature.csv
    uv run benchmarks/side_by_side.py --left outputs/report/signature.csv \\
        --right outputs/invented/report/signature.csv --models npo rmu cb benign noise

A row per measure, a column per model and study, with 95 % intervals where there are some.
Models are named as in the studies' files; one that a study does not have leaves its cells empty.
"""

from dataclasses import dataclass

import pandas as pd

from model_diffs.core.command_line import parse
from model_diffs.core.options import option
from model_diffs.core.script import run_script
from model_diffs.core.step import load_steps
from model_diffs.report.formatting import number


@dataclass(frozen=True, kw_only=True)
class Options:
    """Two pages."""

    left: str = option(help="signature.csv of one study")
    right: str = option(help="that of the other")
    names: tuple[str, ...] = option(("miniature", "trained"), "what the two are called")
    models: tuple[str, ...] = option(
        ("filtered", "npo", "rmu", "cb", "benign", "noise"), "models, by their short names"
    )


def short(row: pd.Series) -> str:
    """A model's name in the study's file."""
    return "filtered" if row["filtered"] else str(row["changed"]).rpartition("__")[2]


def cell(row: pd.Series | None, key: str, unit: str) -> str:
    """A number with its interval, or nothing."""
    if row is None or key not in row or pd.isna(row[key]):
        return ""
    ends = [row.get(f"{key}_{end}") for end in ("low", "high")]
    low, high = (None if one is None or pd.isna(one) else float(one) for one in ends)
    value, interval = number(float(row[key]), unit, low, high)
    return f"{value} ({interval})" if interval else value


def main() -> None:
    """Print the table as Markdown."""
    options = parse(Options, None, __doc__)
    sides = []
    for path in (options.left, options.right):
        table = pd.read_csv(path)
        sides.append({short(row): row for _, row in table.iterrows()})
    heads = [f"{model}, {name}" for model in options.models for name in options.names]
    print("| measure | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for script in load_steps():
        for measure in script.step.measures:
            cells = [
                cell(side.get(model), measure.key, measure.unit)
                for model in options.models
                for side in sides
            ]
            if any(cells):
                print(f"| {measure.heading} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run_script(main)
