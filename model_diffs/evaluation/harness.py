"""Tasks of lm-evaluation-harness on a model, sample by sample, and two models on the same samples.

The harness's own numbers are kept as they are. It compares two models as if they had answered
different samples; here the same samples are resampled on both sides, and McNemar's exact test asks
whether those that only one of the two answers are equally many.
"""

import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from model_diffs.core.errors import BadInput
from model_diffs.stats.intervals import mean_interval

PREFERRED = ("acc", "exact_match", "acc_norm")
"""The metric that models are compared by: the first of these that a task has, else its first."""
ALL = "all"
"""In place of a task: all samples of all tasks."""


class Score(NamedTuple):
    """One metric of one task."""

    model: str
    task: str
    metric: str
    value: float
    """The harness's own."""
    low: float | None
    """Ends of the 95 % interval over samples; None for a group of tasks."""
    high: float | None
    stderr: float | None
    """The harness's own."""
    samples: int | None


class Paired(NamedTuple):
    """Two models on the samples of a task."""

    task: str
    metric: str
    samples: int
    base: float
    changed: float
    change: float
    change_low: float
    change_high: float
    only_base: int
    """Samples that only the base answers rightly."""
    only_changed: int
    p_mcnemar: float


class Evaluated(NamedTuple):
    """What the harness says of one model."""

    scores: list[Score]
    metric: dict[str, str]
    """Of each task, the metric that is compared."""
    values: dict[str, dict[str, float]]
    """Of each task, that metric by sample."""
    logs: dict[str, list[dict[str, Any]]]
    """The harness's log of each task."""


def check() -> None:
    """Raise BadInput where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise BadInput("evaluate.py needs lm-evaluation-harness: uv sync --extra lm-eval")


@functools.cache
def _index(folder: str | None) -> Any:
    """Every task of the harness and of `folder`; reading them takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def _manager(tasks: Sequence[str], folder: str | None) -> Any:
    """Where tasks are found; BadInput for one that is not there or cannot be read."""
    from lm_eval.tasks import get_task_dict

    if folder and not Path(folder).is_dir():
        raise BadInput(f"--task-dir {folder}: no such folder")
    manager = _index(folder)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise BadInput(f"--tasks {task}: the harness has no such task; --task-dir adds some")
    try:
        get_task_dict([*tasks], manager)
    except Exception as error:  # a task of one's own can be wrong in any way
        raise BadInput(
            f"--tasks {' '.join(tasks)}: cannot be read: {_first_line(error)}"
        ) from error
    return manager


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def evaluate(
    label: str,
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: str | None,
    limit: int,
    shots: int | None,
    batch_size: int,
    seed: int,
) -> Evaluated:
    """Run tasks on a loaded model. BadInput for a task that is unknown or whose data are not there.

    `folder`: YAML files of tasks of one's own; `limit`: samples per task, 0 for all.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    manager = _manager(tasks, folder)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=[*tasks],
            num_fewshot=shots,
            limit=limit or None,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (OSError, ConnectionError) as error:
        says = f"data cannot be read: {_first_line(error)}"
        raise BadInput(f"--tasks {' '.join(tasks)}: {says}") from error
    return read(label, found, seed)


def read(label: str, found: Mapping[str, Any], seed: int) -> Evaluated:
    """What the harness returned, as tables."""
    scores, metrics = [], {}
    values: dict[str, dict[str, dict[str, float]]] = {}
    logs: dict[str, list[dict[str, Any]]] = found["samples"]
    for task, cells in found["results"].items():
        named = {key.partition(",")[0]: key for key, value in cells.items() if _number(value)}
        for metric, key in named.items():
            if metric.endswith("_stderr"):
                continue
            own = [one[metric] for one in logs.get(task, ()) if _number(one.get(metric))]
            ends = mean_interval(own, seed)[1:] if own else (None, None)
            low, high = (None if end is None else float(end) for end in ends)
            error = cells.get(key.replace(metric, f"{metric}_stderr", 1))
            stderr = float(error) if _number(error) else None
            count = len(logs[task]) if task in logs else None
            scores.append(Score(label, task, metric, cells[key], low, high, stderr, count))
            if own:
                values.setdefault(task, {})[metric] = {
                    f"{task}/{one['doc_id']}": float(one[metric]) for one in logs[task]
                }
    for task, by_metric in values.items():
        metrics[task] = next((m for m in PREFERRED if m in by_metric), next(iter(by_metric)))
    chosen = {task: values[task][metrics[task]] for task in values}
    return Evaluated(scores, metrics, chosen, logs)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def mcnemar(base: ArrayLike, changed: ArrayLike) -> tuple[int, int, float]:
    """Samples that only one of two models answers rightly, and the exact two-sided p.

    McNemar (1947): under no difference each of them is the base's with probability ½.
    """
    a, b = np.asarray(base) > 0.5, np.asarray(changed) > 0.5
    only_base, only_changed = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_base + only_changed
    p = binomtest(only_base, discordant, 0.5).pvalue if discordant else 1.0
    return only_base, only_changed, float(p)


def paired(base: Evaluated, changed: Evaluated, seed: int) -> list[Paired]:
    """A row per task, and one over all samples. ValueError where samples differ."""
    groups = {task: [*samples] for task, samples in base.values.items()}
    flat = [
        {name: value for samples in one.values.values() for name, value in samples.items()}
        for one in (base, changed)
    ]
    if [*flat[0]] != [*flat[1]]:
        raise ValueError("the two models were asked different samples")
    metrics = {**base.metric, ALL: "/".join(dict.fromkeys(base.metric.values()))}
    rows = []
    for task, ids in {**groups, ALL: [*flat[0]]}.items():
        a, b = (np.array([one[name] for name in ids]) for one in flat)
        only_base, only_changed, p = mcnemar(a, b)
        rows.append(
            Paired(
                task=task,
                metric=metrics[task],
                samples=len(ids),
                base=float(a.mean()),
                changed=float(b.mean()),
                **mean_interval(b - a, seed).cells("change"),
                only_base=only_base,
                only_changed=only_changed,
                p_mcnemar=p,
            )
        )
    return rows


def write_logs(folder: Path, label: str, evaluated: Evaluated) -> None:
    """The harness's log of each task, one sample per line."""
    folder.mkdir(exist_ok=True)
    for task, samples in evaluated.logs.items():
        name = f"{label}__{task.replace('/', '_')}.jsonl"
        lines = (json.dumps(one, default=str, ensure_ascii=False) for one in samples)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
