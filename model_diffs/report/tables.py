"""The measures of the signature as a Markdown table: `docs/signature.md` is compared with it."""

from collections.abc import Iterable

from model_diffs.core.step import Script
from model_diffs.report.axes import declared_by
from model_diffs.report.reductions import words

LAYERS = {
    "": "all rows",
    "states": "states 1 to N",
    "inside": "states 1 to N − 1",
    "last": "state N",
    "early": "the states of the first third",
    "middle": "the states of the second third",
    "late": "the states of the last third",
    "blocks": "rows of blocks",
}


def measures_table(scripts: Iterable[Script]) -> str:
    """Rows `key | column | computed | from` of all measures, in the order of signature.csv."""
    lines = ["| key | column | computed | from |", "|---|---|---|---|"]
    for script, one in declared_by(scripts, "")[1]:
        how = one.computed or words(one, LAYERS[one.layers])
        how += ", minus the base's" if one.less_base else ""
        place = f"step {script.step.number}, `{one.table}.csv`"
        lines.append(f"| `{one.key}` | `{one.column}` | {how} | {place} |")
    return "\n".join(lines)
