"""What the steps that compare weights share: opening, measuring, summaries, lines of figures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint, lockstep

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.core.figures import Line

Prepared = TypeVar("Prepared")
Row = TypeVar("Row")


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


def measure_changes(
    base: Checkpoint,
    changed: Sequence[Checkpoint],
    matrices: Sequence[Matrix],
    device: torch.device,
    prepare: Callable[[Tensor], Prepared],
    measure: Callable[[Matrix, Prepared, Tensor, Tensor], Row],
) -> list[list[Row]]:
    """For each changed model a row per matrix, `measure(matrix, prepare(W_A), W_B, dW)`.

    Matrices are [out, in] fp32 on `device`; the base's are read and prepared once. Raises BadInput,
    naming the tensor, where checkpoints cannot be subtracted or hold NaN or Inf.
    """
    rows: list[list[Row]] = [[] for _ in changed]
    for matrix, stored_a, others in lockstep(base, changed, matrices):
        W_A = stored_a.to(device, torch.float32)
        prepared = prepare(W_A)
        for out, (_, stored_b) in zip(rows, others, strict=True):
            W_B = stored_b.to(device, torch.float32)
            out.append(measure(matrix, prepared, W_B, W_B - W_A))
    return rows


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


def component_lines(table: "pd.DataFrame", column: str, chance: str = "") -> "list[Line]":
    """One line per component over layers, and its value by chance dotted.

    Several matrices of a component in one layer are averaged.
    """
    from model_diffs.core.figures import COMPONENT_COLOURS, column_line

    columns = [column, chance] if chance else [column]
    keys = [table["component"], table["layer"]]
    means = table[columns].astype(float).groupby(keys, sort=False).mean().reset_index()
    means = means.sort_values("layer", kind="stable")
    found = []
    for component, colour in COMPONENT_COLOURS.items():
        rows = means[means["component"] == component]
        found.append(column_line(rows, column, component, colour))
        if chance:
            found.append(column_line(rows, chance, "", colour, ":"))
    return [line for line in found if line.x]
