"""The comparisons under an outroot: which there are, which are asked for, which one is filtered.

Comparisons are known by the models that the records of their runs name. Standard library only: the
pipeline asks before anything is read.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from model_diffs.core import naming, results
from model_diffs.core.errors import BadInput
from model_diffs.report.signature import Comparison

BETWEEN = "__to__"


class Pair(NamedTuple):
    """A comparison by its three labels."""

    label: str
    base: str
    changed: str


def _labels_of(folder: str, model_a: str) -> Pair | None:
    """Part a comparison's folder name by the base that its record names.

    A model's label depends on whether its folder is there, and it may be gone: both are tried.
    """
    path = Path(model_a)
    names = [path.parent.name] if path.name == "unlearned_model" else [path.name]
    for base in (*names, model_a.rstrip("/").replace("/", "_")):
        if base and folder.startswith(base + BETWEEN):
            return Pair(folder, base, folder[len(base + BETWEEN) :])
    return None


def find_pairs(outroot: Path) -> list[Pair]:
    """Every comparison under an outroot that at least one readable run.json vouches for."""
    found = []
    for folder in sorted(outroot.glob(f"*{BETWEEN}*")):
        for record in sorted(folder.glob(f"*/{results.RECORD}")):
            written = results.read_record(record.parent)
            arguments = written.get("arguments") if isinstance(written, dict) else None
            base = arguments.get("model_a") if isinstance(arguments, dict) else None
            pair = _labels_of(folder.name, base) if isinstance(base, str) and base else None
            if pair:
                found.append(pair)
                break
    return found


def choose_pairs(
    outroot: Path, model_a: str | None = None, model_b: Sequence[str] | None = None
) -> list[Pair]:
    """The comparisons that were asked for, else all of the base, else all there are.

    Raises BadInput where they have more than one base.
    """
    if model_b:
        if not model_a:
            raise BadInput("--model-b needs its base: name --model-a too")
        base = naming.model_label(model_a)
        named = [
            Pair(naming.comparison_label(model_a, b), base, naming.model_label(b)) for b in model_b
        ]
        return sorted({*named})  # the order in which they were named makes no other report
    pairs = find_pairs(outroot)
    if model_a:
        return [pair for pair in pairs if pair.base == naming.model_label(model_a)]
    bases = sorted({pair.base for pair in pairs})
    if len(bases) > 1:
        raise BadInput(
            f"{outroot} holds comparisons of {len(bases)} bases ({', '.join(bases)}): "
            "a report is of one, name it by --model-a"
        )
    return pairs


def comparisons_of(pairs: Iterable[Pair], filtered: str | None) -> list[Comparison]:
    """Comparisons for a report, the filtered model first and the others by name.

    `filtered` is its label or short name; without it, models are known as everywhere in figures.
    Raises BadInput where no comparison has that name.
    """
    from model_diffs.core.figures import FILTERED, model_colour

    found = []
    for label, base, changed in pairs:
        short = changed.removeprefix(base + "__") or changed
        if filtered is None:
            is_filtered = model_colour(changed) == FILTERED
        else:
            is_filtered = filtered in (label, changed, short)
        found.append(Comparison(label, base, changed, short, is_filtered))
    if filtered is not None and not any(one.filtered for one in found):
        there = ", ".join(one.short for one in found) or "none"
        raise BadInput(f"--filtered {filtered}: no such changed model; there are: {there}")
    return sorted(found, key=lambda one: (not one.filtered, one.short))
