"""What the steps that compare weights share: opening, summaries, lines of figures."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.core.figures import Panel


@contextmanager
def open_comparisons(
    todo: Sequence[PlannedRun],
) -> Iterator[tuple[Checkpoint, list[Checkpoint], list[Run]]]:
    """The base, the changed models and the open result folders of comparisons with one base.

    All folders are opened before the work, so that an unwritable one fails at once.
    """
    base = Checkpoint.open(todo[0].model_a)
    changed = [Checkpoint.open(planned.model_b) for planned in todo]
    with ExitStack() as stack:
        runs = [stack.enter_context(open_run(planned)) for planned in todo]
        for run, other in zip(runs, changed, strict=True):
            run.reads(*base.files, *other.files)
            run.record(models={one.model: one.identity() for one in (base, other)})
        yield base, changed, runs


def summary(table: "pd.DataFrame", columns: Sequence[str], size: str, by: str) -> dict[str, Any]:
    """Counts, and means of `columns` over changed matrices (`size` above 0), also by `by`."""

    def means(rows: "pd.DataFrame") -> dict[str, Any]:
        found = rows[[*columns]].astype(float).mean().dropna()
        return {"matrices": len(rows), **{str(k): float(v) for k, v in found.items()}}

    changed = table[table[size] > 0]
    return {
        "matrices": len(table),
        "matrices_changed": len(changed),
        "means_over_changed_matrices": means(changed) if len(changed) else {},
        f"by_{by}": {str(kind): means(rows) for kind, rows in changed.groupby(by, sort=False)},
    }


def component_panel(
    table: "pd.DataFrame", title: str, ylabel: str, column: str, *nulls: str, **look: Any
) -> "Panel":
    """A panel with one line per component over layers; what it would be by chance (`nulls`, columns
    too) dotted, then dashed.

    Several matrices of a component in one layer are averaged. `look` goes to Panel.
    """
    from model_diffs.core.figures import COMPONENT_COLOURS, Panel, column_line

    columns = [column, *nulls]
    keys = [table["component"], table["layer"]]
    means = table[columns].astype(float).groupby(keys, sort=False).mean().reset_index()
    means = means.sort_values("layer", kind="stable")
    lines = []
    for component, colour in COMPONENT_COLOURS.items():
        rows = means[means["component"] == component]
        lines.append(column_line(rows, column, component, colour))
        for null, style in zip(nulls, (":", "--"), strict=False):
            lines.append(column_line(rows, null, "", colour, style))
    xlabel = "block (−1: outside blocks)" if (table["layer"] < 0).any() else "block"
    return Panel(title, ylabel, lines, xlabel=xlabel, **look)
