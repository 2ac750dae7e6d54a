"""What a study was measured on and with: models, texts, devices, versions, from its records."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_diffs.report.comparisons import Pair
from model_diffs.report.inventory import Result

# A record is made of values that a person may have edited: what is not of the type expected is
# treated as not recorded.


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _models(pairs: Sequence[Pair], results: Sequence[Result]) -> list[dict[str, Any]]:
    """One entry per model: label, the id it was called by, size on disk and hashes of its files."""
    labels = {pairs[0].base: "base"} | {pair.changed: "changed" for pair in pairs}
    found: dict[str, dict[str, Any]] = {}
    for one in results:
        arguments, identities = _mapping(one.record.get("arguments")), one.record.get("models")
        by_role = {pair.label: pair for pair in pairs}
        if one.step.scope == "comparison" and one.owner in by_role:
            named = {
                by_role[one.owner].base: arguments.get("model_a"),
                by_role[one.owner].changed: arguments.get("model_b"),
            }
        else:
            named = {one.owner: arguments.get("model")}
        for label, model in named.items():
            if label in labels and isinstance(model, str):
                entry = found.setdefault(label, {"label": label, "role": labels[label]})
                entry.setdefault("id", model)
                identity = _mapping(_mapping(identities).get(model))
                for key in ("bytes", "revision", "config_sha256", "header_sha256"):
                    if key in identity:
                        read = _number if key == "bytes" else _text
                        entry.setdefault(key, read(identity[key]))
    return [found[label] for label in labels if label in found]


def _texts(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One entry per split as it was read, with the steps that read it so."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in results:
        record = one.record
        for split, read in _mapping(record.get("texts")).items():
            read = _mapping(read)
            left_out = _mapping(_mapping(record.get("left_out")).get(split))
            entry = {
                "split": split,
                "path": _text(read.get("path")),
                "texts": _number(read.get("texts")),
                "tokens": _number(_mapping(record.get("tokens")).get(split)),
                "texts_left_out": _number(left_out.get("documents")),
                "tokens_left_out": _number(left_out.get("tokens")),
                "sha256": _text(read.get("sha256")),
            }
            key = tuple(map(str, entry.values()))
            steps = found.setdefault(key, {**entry, "steps": []})["steps"]
            if one.step.number not in steps:
                steps.append(one.step.number)
    return sorted(found.values(), key=lambda entry: (str(entry["split"]), entry["steps"]))


def _run(outroot: Path, one: Result) -> dict[str, Any]:
    record = one.record
    keys = (
        *("device", "device_name", "dtype", "seconds", "finished", "peak_memory_bytes", "python"),
        *("git_commit", "command", "questions"),
    )
    return {
        "step": one.step.number,
        "script": one.step.script,
        "owner": one.owner,
        "comparison": one.comparison,
        "folder": one.folder.relative_to(outroot).as_posix(),
        "status": one.status,
        **{key: record.get(key) for key in keys},
        "seconds": _number(record.get("seconds")),
        "command": _text(record.get("command")),
        "versions": dict(_mapping(record.get("packages"))),
        "tables": [n for n in record.get("outputs", []) if str(n).endswith(".csv")],
    }


def _distinct(runs: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    return sorted({str(run[key]) for run in runs if run.get(key)})


def conditions(outroot: Path, pairs: Sequence[Pair], results: Sequence[Result]) -> dict[str, Any]:
    """What `Signature.provenance` holds: models, texts, runs, and what these agree or differ in."""
    there = [one for one in results if one.there]
    made = [_run(outroot, one) for one in there]
    versions: dict[str, set[str]] = {}
    for run in made:
        for package, version in run["versions"].items():
            versions.setdefault(package, set()).add(str(version))
    return {
        "models": _models(pairs, there),
        "texts": _texts(there),
        "runs": made,
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "devices": _distinct(made, "device_name") or _distinct(made, "device"),
        "dtypes": _distinct(made, "dtype"),
        "pythons": _distinct(made, "python"),
        "commits": _distinct(made, "git_commit"),
        "seconds": sum(run["seconds"] or 0.0 for run in made),
        "finished": max(_distinct(made, "finished"), default=None),
    }
