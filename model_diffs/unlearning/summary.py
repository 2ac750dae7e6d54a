"""What unlearning runs came to, from the `unlearning.json` of each model: a table, or a report.

uv run python -m model_diffs.unlearning.summary unlearned_models/*
uv run python -m model_diffs.unlearning.summary --report unlearned_models/miniature-base__npo
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_diffs.core import arguments
from model_diffs.core import results as runs
from model_diffs.core.errors import BadInput

# Columns of the table where a run has them; the rest is in the report.
MEASURED = ("hazard_accuracy", "adjacent_accuracy", "general_accuracy", "forget_NLL", "retain_NLL")


def read_run(folder: Path) -> dict[str, Any]:
    """The `unlearning.json` of a model folder. BadInput where there is none."""
    try:
        return json.loads((folder / "unlearning.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError) as error:
        raise BadInput(f"{folder}: no unlearning.json; give folders made by unlearn.py") from error


def cell(value: Any) -> str:
    """A number as a table shows it; what was not measured is a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def table(folders: Sequence[Path], results: Mapping[str, str]) -> str:
    """One row per model; `results` by method (done, skipped, failed), empty where nobody ran."""
    found: list[tuple[str, dict[str, Any] | None]] = []
    for folder in folders:
        made = (folder / "unlearning.json").exists()
        if not made and not results:
            raise BadInput(f"{folder}: no unlearning.json; give folders made by unlearn.py")
        found.append((folder.name, read_run(folder) if made else None))
    after = [run["after"] for _, run in found if run]
    measured = [name for name in MEASURED if any(one.get(name) is not None for one in after)]
    head = ["model", *(["result"] if results else []), *measured, "seconds", "GB"]
    rows = [head]
    for name, run in found:
        row = [name]
        if results:
            row.append(results.get(name.rsplit("__", 1)[-1], "–"))
        if run is None:
            row += ["–"] * (len(head) - len(row))
        else:
            row += [cell(run["after"].get(column)) for column in measured]
            row += [f"{run['seconds']:.0f}", f"{run['peak_memory_bytes'] / 1e9:.1f}"]
        rows.append(row)
    return _aligned(rows)


def _interval(values: Mapping[str, Any], name: str) -> str:
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    if low is None or high is None:
        return cell(values.get(name))
    return f"{cell(values[name])} ({cell(low)} – {cell(high)})"


def report(folder: Path) -> str:
    """What has to stand beside a result, filled in from the records; gaps (…) are the author's."""
    run = read_run(folder)
    record = runs.read_record(folder) or {}
    versions = ", ".join(f"{k} {v}" for k, v in sorted(run.get("packages", {}).items()))
    given = run["arguments"]
    lines = [
        f"# {run['method']} on {run['base']}",
        "",
        "## Model",
        f"- base: {run['base']}; weights trained: {run['trained_weights']:,}",
        f"- trained in {run['weights_dtype']}, mixed precision {run['mixed_precision']}, "
        f"saved in {run['saved_dtype']}",
        "",
        "## Texts",
    ]
    for split, facts in run["texts"].items():
        lines.append(
            f"- {split}: {facts['texts']} texts, {facts['trained_on']} trained on, "
            f"{facts['held_out']} held out; SHA-256 {facts['sha256']}"
        )
    lines += ["- domain, source and licence: …", "", "## Training"]
    lines += [f"- `--{k.replace('_', '-')}` {v}" for k, v in sorted(given.items()) if v is not None]
    lines += [
        f"- {run['steps']} steps, {run['seconds']:.0f} s, peak memory "
        f"{run['peak_memory_bytes'] / 1e9:.1f} GB, {run['processes']} process(es)",
        "- settings chosen on: … (not on what is reported below)",
        "",
        "## Machine",
        f"- device: {run['device']} {record.get('device_name', '')}".rstrip(),
        f"- Python {record.get('python', '…')}; {versions}",
        f"- commit of this project: {record.get('git_commit', '…')}",
        "",
        "## Results (95 % intervals over documents or questions; one seed)",
        "",
        "| | base | unlearned |",
        "|---|---|---|",
    ]
    plain = [n for n in run["before"] if not n.endswith(("_low", "_high"))]
    lines += [
        f"| {n} | {_interval(run['before'], n)} | {_interval(run['after'], n)} |" for n in plain
    ]
    lines += [
        "",
        "- seeds run, and the spread over them: …",
        "- after relearning (`relearn.py`; rates, steps, worst case): …",
        "- downstream tasks, generated samples, other forms of the questions: …",
    ]
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="model folders made by unlearn.py")
    parser.add_argument("--report", action="store_true", help="a template to fill, for each")
    parser.add_argument("--results", default="", help="method=result …, a column of the table")
    return parser.parse_args(argv)


def main() -> None:
    """Print the table or the reports."""
    options = parse_arguments()
    folders = [Path(folder) for folder in options.folders]
    if options.report:
        print("\n\n".join(report(folder) for folder in folders))
    else:
        print(table(folders, dict(one.split("=", 1) for one in options.results.split())))


if __name__ == "__main__":
    arguments.run_script(main)
