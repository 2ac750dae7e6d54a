"""What a study was measured on and with: models, texts, devices, versions, from its records."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_diffs.report.inventory import Result
from model_diffs.report.signature import Comparison


def _models(comparisons: Sequence[Comparison], results: Iterable[Result]) -> list[dict[str, Any]]:
    """One entry per model: label, the id it was called by, size on disk and hashes of its files."""
    by_label = {one.label: one for one in comparisons}
    found: dict[str, dict[str, Any]] = {
        label: {} for label in (comparisons[0].base, *(one.changed for one in comparisons))
    }
    for one in results:
        arguments = one.record["arguments"]
        pair = by_label.get(one.owner)
        named = (
            {pair.base: arguments.get("model_a"), pair.changed: arguments.get("model_b")}
            if pair and one.step.scope == "comparison"
            else {one.owner: arguments.get("model")}
        )
        for label, model in named.items():
            if label in found and isinstance(model, str):
                identity = one.record["models"].get(model, {})
                known = {"label": label, "id": model, **identity}
                found[label] = known | found[label]
    return [entry for entry in found.values() if entry]


def _texts(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One entry per split as it was read, with the steps that read it so."""
    found: dict[str, dict[str, Any]] = {}
    for one in results:
        for text in one.record["texts"]:
            steps = found.setdefault(str(text), {**text, "steps": []})["steps"]
            if one.step.number not in steps:
                steps.append(one.step.number)
    return sorted(found.values(), key=lambda entry: (entry["split"], entry["steps"]))


def _distinct(runs: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    return sorted({run[key] for run in runs if run[key]})


def conditions(
    outroot: Path, comparisons: Sequence[Comparison], inventory: Sequence[Result]
) -> dict[str, Any]:
    """`Signature.provenance`: models, texts, runs, and what these agree or differ in."""
    there = [one for one in inventory if one.there]
    runs = [
        {
            **one.record,
            "step": one.step.number,
            "script": one.script.name,
            "owner": one.owner,
            "comparison": one.comparison,
            "folder": one.folder.relative_to(outroot).as_posix(),
            "tables": [name for name in one.record["outputs"] if name.endswith(".csv")],
        }
        for one in there
    ]
    versions: dict[str, set[str]] = {}
    for run in runs:
        for package, version in run["versions"].items():
            versions.setdefault(package, set()).add(str(version))
    return {
        "models": _models(comparisons, there),
        "texts": _texts(there),
        "runs": runs,
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "devices": _distinct(runs, "device_name") or _distinct(runs, "device"),
        "dtypes": _distinct(runs, "dtype"),
        "pythons": _distinct(runs, "python"),
        "commits": _distinct(runs, "git_commit"),
        "seconds": sum(run["seconds"] or 0.0 for run in runs),
        "finished": max(_distinct(runs, "finished"), default=None),
    }
