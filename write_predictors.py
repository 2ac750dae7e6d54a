"""Step 21. Which numbers stand before an attack? Writes them down, so that none is chosen after it.

One row per changed model: every measure that the steps before found, and how the model was made. In
a locked world no attack runs before this table is there (docs/brittleness.md).

    uv run write_predictors.py --outroot outputs/brittleness/world1 \\
        --model-a models/brittleness/world1/miniature-base \\
        --model-b unlearned_models/brittleness/world1/miniature-base__npo
    uv run write_predictors.py --model-a org/base --model-b org/unlearned

Writes <outroot>/predictors/predictors.csv.
"""

from dataclasses import dataclass
from pathlib import Path

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Run, option, recorded
from model_diffs.core.results import PlannedRun, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Step, Table, load_steps

STEP = Step(
    number=21,
    folder="predictors",
    question="Which numbers stand before an attack?",
    scope="study",
    optional=True,
    tables=(Table("predictors"),),
)


@dataclass(frozen=True, kw_only=True)
class Options(Run):
    """Models."""

    model_a: str = option(help="base")
    model_b: tuple[str, ...] = option(help="changed models")
    registration: str | None = option(
        None, "the document that fixes the analysis; its hashes are kept with the table"
    )


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder, of exactly these models."""
    folder = Path(options.outdir or Path(options.outroot) / STEP.folder)
    models = [naming.model_label(model) for model in options.model_b]
    return [PlannedRun(folder, "predictors", {**recorded(options), "rows": models})]


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Read the measures and write the table."""
    from model_diffs.attacks import lock
    from model_diffs.brittleness import predictors
    from model_diffs.core.folders import read_json

    outroot, scripts = Path(options.outroot), load_steps()
    found = [*predictors.rows(outroot, options.model_a, options.model_b, scripts, options.seed)]
    if all(set(filter(None, row.values())) <= {row["model"]} for row in found):
        raise BadInput(f"{outroot} holds no result of these models: run the steps before first")
    document = Path(options.registration) if options.registration else None
    for planned in todo:
        with open_run(planned) as run:
            run.table("predictors", found)
            run.reads(*predictors.tables_read(outroot, options.model_a, options.model_b, scripts))
            run.record(registered=read_json(lock.record_of(document)) if document else None)


if __name__ == "__main__":
    run_step(__name__)
