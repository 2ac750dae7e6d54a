"""What a study was measured on and with: models, texts, devices, versions, from its records."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_diffs.report.formatting import count
from model_diffs.report.inventory import Result
from model_diffs.report.signature import Comparison


def _training_log(model: str) -> Path:
    return Path(model) / "unlearning.json"


def training_logs(provenance: Mapping[str, Any]) -> list[Path]:
    """The files that `sum_lr` of the models comes from."""
    return [_training_log(one["id"]) for one in provenance["models"] if one["sum_lr"]]


def _sum_of_rates(model: str) -> float | None:
    """Σ lr over the steps of a model's unlearning, by the log in its folder; None without one."""
    try:
        log = json.loads(_training_log(model).read_text(encoding="utf-8"))
        return sum(float(step["lr"]) for step in log["losses"]) or None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _models(comparisons: Sequence[Comparison], results: Iterable[Result]) -> list[dict[str, Any]]:
    """One entry per model: label, the id it was called by, size on disk, a hash, and Σ lr."""
    labels = (comparisons[0].base, *(one.changed for one in comparisons))
    by_label = {one.label: one for one in comparisons}
    found: dict[str, dict[str, Any]] = {label: {} for label in labels}
    for one in results:
        given = one.record["arguments"]
        named = {one.owner: given.get("model")}
        if pair := by_label.get(one.owner):
            named = {pair.base: given.get("model_a"), pair.changed: given.get("model_b")}
        for label, model in named.items():
            if label in found and isinstance(model, str):
                known = {"label": label, "id": model, **one.record["models"].get(model, {})}
                found[label] = known | found[label]
    return [{**one, "sum_lr": _sum_of_rates(one["id"])} for one in found.values() if one]


def _texts(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One entry per split as it was read, with the steps that read it so."""
    found: dict[str, dict[str, Any]] = {}
    for one in results:
        for text in one.record["texts"]:
            steps = found.setdefault(str(text), {**text, "steps": {}})["steps"]
            steps[one.step.number] = None
    return sorted(found.values(), key=lambda entry: (entry["split"], *entry["steps"]))


def _distinct(runs: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    return sorted({run[key] for run in runs if run[key]})


def _how(conditions: Mapping[str, Any]) -> str:
    """Texts, device and precision in one phrase; empty where nothing is recorded."""
    counts: dict[str, int] = {}
    for text in conditions["texts"]:
        counts[text["split"]] = max(text["texts"] or 0, counts.get(text["split"], 0))
    named = " and ".join(f"{count(number)} {split}" for split, number in counts.items() if number)
    parts = (("on", "devices"), ("in", "dtypes"))
    where = [f"{word} {', '.join(conditions[key])}" for word, key in parts if conditions[key]]
    return ", ".join(filter(None, [named and f"with {named} texts", " ".join(where)]))


def conditions(
    outroot: Path, comparisons: Sequence[Comparison], inventory: Sequence[Result]
) -> dict[str, Any]:
    """`Signature.provenance`: models, texts, runs, and what these agree or differ in."""
    there = [one for one in inventory if one.there]
    short = {one.label: one.short for one in comparisons}
    runs = [
        {
            **one.record,
            "step": (one.step.number, one.script.name),
            "seconds": one.record["seconds"] or 0.0,
            "whose": short.get(one.comparison) or one.owner or "all models",
            "folder": one.folder.relative_to(outroot).as_posix(),
            "tables": [name for name in one.record["outputs"] if name.endswith(".csv")],
        }
        for one in there
    ]
    versions: dict[str, set[str]] = {}
    for run in runs:
        for package, version in run["versions"].items():
            versions.setdefault(package, set()).add(str(version))
    found = {
        "models": _models(comparisons, there),
        "texts": _texts(there),
        "runs": runs,
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "devices": _distinct(runs, "device_name") or _distinct(runs, "device"),
        "dtypes": _distinct(runs, "dtype"),
        "pythons": _distinct(runs, "python"),
        "commits": _distinct(runs, "git_commit"),
        "finished": max(_distinct(runs, "finished"), default=None),
    }
    return {**found, "how": _how(found)}
