"""Step 20. What do published evaluations say of both models? Tasks of lm-evaluation-harness.

Each task is run on the base and on each changed model, with the harness's own prompts and metrics.
Its log of every sample is kept, so that the models are compared on the same samples: a paired
interval, and McNemar's exact test.

    uv run evaluate.py --model-a models/miniature-base --model-b models/miniature-filtered \\
        --tasks my_task --task-dir tasks
    uv run evaluate.py --model-a org/base --model-b org/changed --tasks wmdp_bio mmlu hellaswag

Writes <A>__to__<B>/evaluation/: evaluation.csv (the harness's number of each task and metric, with
an interval), paired.csv, per_sample.csv, samples/ (the harness's logs). Needs the extra lm-eval. In
a study, `[steps.20]` with `tasks` asks for it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core.errors import BadInput
from model_diffs.core.options import Comparison, Compute, natural, option, positive
from model_diffs.core.results import PlannedRun, open_run
from model_diffs.core.script import run_step, seed_everything
from model_diffs.core.step import Claims, Measure, Step, Table, comparison_runs

if TYPE_CHECKING:
    from model_diffs.evaluation.harness import Evaluated

STEP = Step(
    number=20,
    folder="evaluation",
    question="What do published evaluations say of both models?",
    memory="model_diffs.evaluation.memory:HARNESS",
    optional=True,
    tables=(Table("evaluation"), Table("paired"), Table("per_sample")),
    measures=(
        Measure(
            "tasks_change",
            axis="knowledge",
            table="per_sample",
            column="change",
            unit="change",
            label="published tasks, change",
            meaning="Change of the share of samples of the harness's tasks that are answered "
            "rightly; mean over all samples.",
            paired_by="question",
            options=("tasks", "limit", "shots"),
            unchanged=0.0,
            above="answers more samples of the published tasks than the filtered model",
            below="answers fewer samples of the published tasks than the filtered model",
            same="does not differ significantly from the filtered model on the published tasks",
            against_base=Claims(
                above="answers more samples of the published tasks than the base",
                below="answers fewer samples of the published tasks than the base",
                same="does not differ significantly from the base on the published tasks",
                reference=0.0,
            ),
        ),
        Measure(
            "tasks_mcnemar",
            axis="knowledge",
            table="paired",
            column="p_mcnemar",
            where={"task": "all"},
            label="published tasks, McNemar's p",
            meaning="Whether the samples that only one of base and changed model answers are "
            "equally many: exact two-sided p over all tasks.",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Compute):
    """Evaluation."""

    tasks: tuple[str, ...] = option((), "tasks of the harness, such as wmdp_bio mmlu hellaswag")
    task_dir: str | None = option(None, "folder with YAML files of tasks of one's own")
    limit: int = option(0, "samples per task; 0 = all", check=natural)
    shots: int | None = option(None, "answered samples in front; default: the task's own")
    batch_size: int = option(16, "samples per pass", check=positive)


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder per changed model."""
    if not options.tasks:
        raise BadInput("--tasks names no task of the harness, such as hellaswag")
    return comparison_runs(options, STEP.folder)


def evaluate(model: str, options: Options) -> "Evaluated":
    """The tasks on one model."""
    from model_diffs.core import naming
    from model_diffs.evaluation import harness
    from model_diffs.models import loading

    seed_everything(options.seed)
    return harness.evaluate(
        naming.model_label(model),
        loading.load_for(options, model),
        loading.load_tokenizer(model, options.trust_remote_code),
        options.tasks,
        folder=options.task_dir,
        limit=options.limit,
        shots=options.shots,
        batch_size=options.batch_size,
        seed=options.seed,
    )


def write(planned: PlannedRun, base: "Evaluated", changed: "Evaluated", options: Options) -> None:
    """The tables of one comparison."""
    from model_diffs.core import naming
    from model_diffs.evaluation import harness
    from model_diffs.models.checkpoints import Checkpoint

    with open_run(planned) as run:
        run.table("evaluation", [*base.scores, *changed.scores], harness.Score._fields)
        table = run.table("paired", harness.paired(base, changed, options.seed))
        rows = [
            {"id": name, "task": task, "base": a, "changed": b, "change": b - a}
            for task, samples in base.values.items()
            for (name, a), b in zip(samples.items(), changed.values[task].values(), strict=True)
        ]
        run.table("per_sample", rows)
        for model, evaluated in ((planned.model_a, base), (planned.model_b, changed)):
            harness.write_logs(run.path / "samples", naming.model_label(model), evaluated)
            run.reads(*Checkpoint.open(model).files)
        if options.task_dir:
            run.reads(*(one for one in sorted(Path(options.task_dir).rglob("*")) if one.is_file()))
        run.record(metric=base.metric, seed=options.seed)
    for row in table.itertuples():
        print(f"{planned.label}, {row.task}: {row.base:.3f} → {row.changed:.3f}, "
              f"p {row.p_mcnemar:.3g}")  # fmt: skip


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Evaluate the base once, then each changed model."""
    from model_diffs.evaluation import harness

    harness.check()
    base = evaluate(todo[0].model_a, options)
    for planned in todo:
        write(planned, base, evaluate(planned.model_b, options), options)


if __name__ == "__main__":
    run_step(__name__)
