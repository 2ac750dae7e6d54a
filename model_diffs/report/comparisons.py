"""The comparisons under an outroot: which there are, which are asked for, and the models' roles.

Comparisons are known by the models that the records of their runs name. Light at import.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from model_diffs.core import naming, results
from model_diffs.core.errors import BadInput
from model_diffs.report.signature import Comparison, Role

BETWEEN = "__to__"
BENIGN = "benign"
"""In the short name of a control that harmless training made, where nothing else says which are."""
ORDER: "tuple[Role, ...]" = ("filtered", "unlearned", "control")


def comparison(label: str, base: str, changed: str) -> Comparison:
    """A comparison by its labels, its role not yet known."""
    return Comparison(label, base, changed, changed.removeprefix(base + "__") or changed)


def _named_by(folder: str, model_a: str) -> Comparison | None:
    """Split a comparison's folder name at the base that its record names.

    A model's label depends on whether its folder exists, and it may be gone: both are tried.
    """
    path = Path(model_a)
    local = path.parent.name if path.name == "unlearned_model" else path.name
    for base in (local, model_a.rstrip("/").replace("/", "_")):
        if base and folder.startswith(base + BETWEEN):
            return comparison(folder, base, folder[len(base + BETWEEN) :])
    return None


def find_comparisons(outroot: Path) -> list[Comparison]:
    """Every comparison under an outroot with at least one readable run.json."""
    found: dict[str, Comparison] = {}
    for path in sorted(outroot.glob(f"*{BETWEEN}*/*/{results.RECORD}")):
        record = results.read_record(path.parent)
        model_a = record["arguments"].get("model_a") if record else None
        if isinstance(model_a, str) and (one := _named_by(path.parts[-3], model_a)):
            found.setdefault(one.label, one)
    return sorted(found.values())


def choose_comparisons(
    outroot: Path, model_a: str | None = None, model_b: Sequence[str] = ()
) -> list[Comparison]:
    """The comparisons that were asked for, else all of the base, else all there are.

    Sorted, so that the order of --model-b makes no other report. Raises BadInput where they have
    more than one base.
    """
    if model_b and not model_a:
        raise BadInput("--model-b needs its base: name --model-a too")
    if model_a and model_b:
        base = naming.model_label(model_a)
        pairs = {
            (naming.comparison_label(model_a, b), base, naming.model_label(b)) for b in model_b
        }
        return sorted(comparison(*pair) for pair in pairs)
    found = find_comparisons(outroot)
    if model_a:
        return [one for one in found if one.base == naming.model_label(model_a)]
    bases = sorted({one.base for one in found})
    if len(bases) > 1:
        raise BadInput(
            f"{outroot} holds comparisons of {len(bases)} bases ({', '.join(bases)}): "
            "a report is of one, name it by --model-a"
        )
    return found


def with_roles(
    comparisons: Iterable[Comparison],
    filtered: str | None = None,
    control: Sequence[str] = (),
    harmless: Sequence[str] = (),
) -> list[Comparison]:
    """The comparisons with their models' roles: the filtered model, unlearned ones, controls.

    Models are named by label or short name; without a role given, roles are those that figures
    colour. `harmless` are controls, too. Raises BadInput where no model has a given name.
    """
    from model_diffs.core.figures import CONTROLS, FILTERED, model_colour

    comparisons = list(comparisons)
    names = {one: (one.label, one.changed, one.short) for one in comparisons}
    given = [("--filtered", filtered)] * bool(filtered)
    given += [("--control", one) for one in control] + [("--harmless", one) for one in harmless]
    for flag, name in given:
        if not any(name in known for known in names.values()):
            there = ", ".join(one.short for one in comparisons) or "none"
            raise BadInput(f"{flag} {name}: no such changed model; there are: {there}")

    def role(one: Comparison) -> Role:
        colour = model_colour(one.changed)
        said = {*control, *harmless}
        if said & {*names[one]} or (not control and colour in CONTROLS.values()):
            return "control"
        known = filtered in names[one] if filtered else colour == FILTERED
        return "filtered" if known else "unlearned"

    def trained(one: Comparison) -> bool:
        return bool({*harmless} & {*names[one]}) if harmless else BENIGN in one.short

    known = {one: role(one) for one in comparisons}
    found = [
        one._replace(role=own, harmless=own == "control" and trained(one))
        for one, own in known.items()
    ]
    return sorted(found, key=lambda one: (ORDER.index(one.role), one.short))
