"""Two copies of a model, taught side by side on the two corpora, in processes of their own.

The process finds what it runs by name, so this stands in the package. The training loop is that of
unlearning, with the loss of an ordinary fine-tuning.
"""

import dataclasses
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from model_diffs.core import results
from model_diffs.core.parent import end_with_parent
from model_diffs.core.progress import PROGRESS_LINE
from model_diffs.core.results import PlannedRun
from model_diffs.countries.recipe import Teaching

BLOCKS = r"\.\d+\."
"""Names of what is taught: parts of blocks have a number. Embedding and head stay:
Adam would move each word's row as far as any other weight, however small its gradient."""


def teach(
    planned: PlannedRun, recipe: Teaching, model: str, data: Path, device: str, line: int
) -> None:
    """Teach one copy its corpus. `line` is that of the progress bar."""
    from model_diffs.unlearning import running
    from model_diffs.unlearning.settings import Options

    os.environ[PROGRESS_LINE] = str(line)
    options = Options(
        model=model,
        method="finetune",
        text=str(data / f"corpus_{planned.arguments['corpus']}.txt"),
        forget_text=str(data / "forget.txt"),
        retain_text=str(data / "retain.txt"),
        questions=str(data / "questions.jsonl"),
        eval_split=0,
        lr=recipe.lr,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        warmup_steps=recipe.warmup_steps,
        trainable=BLOCKS,
        seed=recipe.seed,
        device=device,
    )
    with results.open_run(planned) as run:
        running.make(options, run)


def teach_all(
    todo: Sequence[PlannedRun], recipe: Teaching, model: str, data: Path, device: str
) -> None:
    """Teach the copies side by side. Raises what the first failed one raised."""
    own = Teaching(**{one.name: getattr(recipe, one.name) for one in dataclasses.fields(Teaching)})
    context = multiprocessing.get_context("spawn")
    count = min(len(todo), os.cpu_count() or 1)
    with ProcessPoolExecutor(count, context, end_with_parent, (os.getpid(),)) as pool:
        jobs = [
            pool.submit(teach, one, own, model, data, device, line) for line, one in enumerate(todo)
        ]
    for planned, job in zip(todo, jobs, strict=True):
        if job.exception() is None:
            planned.committed.append(True)
    for job in jobs:
        job.result()
