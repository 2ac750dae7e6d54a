"""Results of unlearning runs, from the `unlearning.json` of each model: a table, or a report.

uv run python -m model_diffs.unlearning.summary unlearned_models/*
uv run python -m model_diffs.unlearning.summary --report unlearned_models/miniature-base__npo
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.core.folders import read_json
from model_diffs.core.methods import METHODS
from model_diffs.core.options import flag
from model_diffs.core.records import read_record
from model_diffs.core.script import run_script
from model_diffs.stats.intervals import mean_interval
from model_diffs.stats.seeds import entry_of
from model_diffs.unlearning.settings import without_effect

# Columns of the table where a run has them; the rest is in the report.
MEASURED = ("hazard_accuracy", "adjacent_accuracy", "general_accuracy", "forget_NLL", "retain_NLL")


def read_run(folder: Path) -> dict[str, Any]:
    """The `unlearning.json` of a model folder. BadInput where there is none."""
    found = read_json(folder / "unlearning.json")
    if found is None:
        raise BadInput(f"{folder}: no unlearning.json; give folders made by unlearn.py")
    return found


def cell(value: Any) -> str:
    """A number as a table shows it; what was not measured is a dash."""
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(folders: Sequence[Path], results: Mapping[Path, str]) -> str:
    """One row per model, and one with mean and standard deviation where several differ in seed.

    Models are named `<base>__<entry>[__seed<N>]`. `results` by folder (done, skipped, failed): then
    a model need not have been made.
    """
    import pandas as pd

    rows = []
    for folder in folders:
        row: dict[str, Any] = {"model": folder.name, "result": results.get(folder)}
        row["entry"] = entry_of(folder.name)
        made = results.get(folder) in ("done", "skipped") and (folder / "unlearning.json").exists()
        if made or not results:  # one that failed may have left the numbers of an earlier run
            run = read_run(folder)
            row |= {name: run["after"].get(name) for name in MEASURED}
            row |= {"seconds": run["seconds"], "GB": run["peak_memory_bytes"] / 1e9}
        rows.append(row)
    columns = ("entry", "model", "result", *MEASURED, "seconds", "GB")
    found = pd.DataFrame(rows, columns=columns).dropna(axis="columns", how="all")
    measured = [name for name in MEASURED if name in found]
    summaries = []
    for label, seeds in found.groupby("entry", sort=False):
        if len(seeds) > 1:
            mean, spread = seeds[[*measured, "seconds", "GB"]].mean(), seeds[measured].std()
            known = [name for name in measured if pd.notna(mean[name])]
            both = {name: f"{cell(mean[name])} ± {cell(spread[name])}" for name in known}
            named = {"model": f"{label}: mean of {len(seeds)}"}
            summaries.append(mean.to_dict() | both | named)
    whole = pd.concat([found, pd.DataFrame(summaries)]) if summaries else found
    whole = whole.drop(columns="entry")
    shown = {"seconds": "{:.0f}".format, "GB": "{:.1f}".format}
    for name in whole.columns[1:]:
        whole[name] = [
            "–"
            if pd.isna(value)
            else str(value)
            if isinstance(value, str)
            else shown.get(name, cell)(value)
            for value in whole[name]
        ]
    return whole.to_string(index=False)


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────

CARD = """\
# {base}, {what} {method}

{method}: {says}. Made from `{base}` by `unlearn.py` in {length} and {seconds:.1f} s.
{caveat}

| | base | this model |
|---|---|---|
{measured}

NLL in nats per token on texts held out of training; accuracies on four-choice questions; 95 %
intervals over questions; one seed.

| argument | value |
|---|---|
{given}
"""
CAVEATS = {
    "unlearned": "Removed knowledge may still be in the weights: see `relearn.py`.",
    "control": "It is what unlearned models are compared with.",
}
EDITED = """\
‖ΔW‖ over its {count} matrices is {stored:.6g} as they are stored, {wanted:.6g} before
rounding. Vectors (biases, norms) are the base's.
"""
REPORT = """
## Texts
{splits}
- domain, source and licence: …

## Training
- {trained_weights:,} weights trained in {weights_dtype}, mixed precision {mixed_precision},
  saved in {saved_dtype}; peak memory {gigabytes:.1f} GB, {processes} process(es)
- settings chosen on: … (not on what is reported above)

## Machine
- device: {device} {device_name}
- Python {python}; {versions}
- commit of this project: {git_commit}

## Tests of no change, paired over held-out texts
{tests}

## Robustness
- seeds run, and the spread over them: {seeds}
- after relearning (`relearn.py`; rates, steps, worst case): …
- downstream tasks, generated samples, other forms of the questions: …"""


def _interval(values: Mapping[str, Any], name: str) -> str:
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    ends = "" if low is None or high is None else f" ({cell(low)} – {cell(high)})"
    return cell(values.get(name)) + ends


def model_card(run: Mapping[str, Any]) -> str:
    """The README.md of an unlearned model, from what `unlearning.json` says."""
    measured = [
        f"| {name} | {_interval(run['before'], name)} | {_interval(run['after'], name)} |"
        for name in run["before"]
        if not name.endswith(("_low", "_high"))
    ]
    unused = without_effect(run["method"])
    given = [f"| `{flag(n)}` | {v} |" for n, v in run["arguments"].items() if n not in unused]
    method = METHODS[run["method"]]
    changes, caveat = run.get("matrices", []), CAVEATS[method.role]
    if changes:
        norms = {key: math.hypot(*(one[key] for one in changes)) for key in ("stored", "wanted")}
        caveat = EDITED.format(count=len(changes), **norms) + caveat
    return CARD.format(
        **run,
        length=f"{run['steps']} steps" if run["steps"] else "no step of training",
        what="unlearned by" if method.role == "unlearned" else "control:",
        caveat=caveat,
        measured="\n".join(measured),
        given="\n".join(given),
    )


def paired_tests(run: Mapping[str, Any]) -> str:
    """A line per split: change of NLL per held-out text, its bootstrap interval, paired t-test."""
    from scipy import stats

    kept = run.get("held_out_NLL") or {"before": {}, "after": {}}
    lines = []
    for split, after in kept["after"].items():
        change = [b - a for a, b in zip(kept["before"][split], after, strict=True)]
        if len(change) < 2:
            continue
        mean, low, high = mean_interval(change, run["arguments"].get("seed", 0))
        t = stats.ttest_1samp(change, 0.0)
        lines.append(
            f"- {split}_NLL: {mean:+.3f} nats per token ({low:+.3f} – {high:+.3f}, 95 % bootstrap "
            f"over {len(change)} texts); paired t = {t.statistic:.2f}, p = {t.pvalue:.2g}"
        )
    return "\n".join(lines) or "- no text was held out"


def over_seeds(folder: Path) -> str:
    """Mean ± standard deviation of a model and those beside it that differ in seed alone."""
    import pandas as pd

    entry = entry_of(folder.name)
    beside = [one for one in folder.parent.glob(f"{entry}__seed*") if entry_of(one.name) == entry]
    several = [one for one in sorted(beside) if (one / "unlearning.json").exists()]
    if len(several) < 2 or entry == folder.name:
        return "… (one seed here; `seeds` of a study makes a model per seed)"
    after = pd.DataFrame([read_run(one)["after"] for one in several])
    measured = [name for name in MEASURED if name in after]
    found = [f"{name} {after[name].mean():.3f} ± {after[name].std():.3f}" for name in measured]
    return f"{len(several)} seeds, mean ± standard deviation: {', '.join(found)}"


def report(folder: Path) -> str:
    """What has to stand beside a result, filled in from the records; gaps (…) are the author's."""
    run = read_run(folder)
    record = {"device_name": "", "python": "…", "git_commit": "…", **(read_record(folder) or {})}
    splits = [
        f"- {split}: {facts['texts']} texts, {facts['trained_on']} trained on, "
        f"{facts['held_out']} held out; SHA-256 {facts['sha256']}"
        for split, facts in run["texts"].items()
    ]
    return model_card(run) + REPORT.format(
        **{**record, **run},
        splits="\n".join(splits),
        tests=paired_tests(run),
        seeds=over_seeds(folder),
        gigabytes=run["peak_memory_bytes"] / 1e9,
        versions=", ".join(f"{k} {v}" for k, v in sorted(run.get("packages", {}).items())),
    )


def main() -> None:
    """Print the table or the reports."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("folders", nargs="+", type=Path, help="model folders made by unlearn.py")
    parser.add_argument("--report", action="store_true", help="a template to fill, for each")
    given = parser.parse_args()
    print("\n\n".join(map(report, given.folders)) if given.report else table(given.folders, {}))


if __name__ == "__main__":
    run_script(main)
