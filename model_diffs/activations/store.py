"""What a step asks for: statistics of models and of changes, made in one pass where missing."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from model_diffs.activations.saved import Saved, entry
from model_diffs.activations.sinks import without_sinks
from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Pass
from model_diffs.core.results import PlannedRun
from model_diffs.data.texts import Split, read_splits
from model_diffs.models import files


class Statistics(NamedTuple):
    """What a step reads: by split name and model, or by split name and changed model."""

    splits: Sequence[Split]
    models: Mapping[tuple[str, str], Saved]
    differences: Mapping[tuple[str, str], Saved]


def statistics(
    options: Pass,
    models: Iterable[str] = (),
    differences: Iterable[tuple[str, str]] = (),
    fresh: bool = False,
    base: str | None = None,
) -> Statistics:
    """Statistics of `models` and of the changes A → B: read where saved, else made in one pass.

    With `fresh` all are made anew. The tokens of a change are those that A decides, of other models
    those that `base` decides, or without it each for itself. Raises BadInput for splits that cannot
    be read or share lines, and what loading a model raises.
    """
    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    models, differences = [*models], [*differences]
    wanted = [(model, "") for model in dict.fromkeys(models)] + [*dict.fromkeys(differences)]
    of_change = {model: a for a, b in differences for model in (a, b)}
    decisive = {a: of_change.get(a, base or a) for a, _ in wanted}
    decided = {one: without_sinks(options, one, splits) for one in dict.fromkeys(decisive.values())}
    own = {a: decided[one] for a, one in decisive.items()}
    found = [entry(own[a], split, a, b) for a, b in wanted for split in splits]
    # Two names of the same content share an entry.
    missing = {one.planned.folder: one for one in found if fresh or not one.complete()}
    for skipped in dict.fromkeys(one.skip_first for one in own.values()):
        some = [one for one in missing.values() if own[one.model_a].skip_first == skipped]
        if some:
            from model_diffs.activations import collecting

            collecting.collect(some, dataclasses.replace(options, skip_first=skipped))
    return Statistics(
        splits,
        {(one.split.name, one.model_a): one for one in found if not one.model_b},
        {(one.split.name, one.model_b): one for one in found if one.model_b},
    )


def of_comparisons(options: Pass, planned_runs: Sequence[PlannedRun]) -> Statistics:
    """`statistics` of base and changed models. Raises BadInput where they read different tokens.

    Statistics saved by separate runs were not checked against each other when they were made.
    """
    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    # Both models on the tokens that the base decides.
    options = without_sinks(options, planned_runs[0].model_a, splits)
    found = statistics(options, [m for p in planned_runs for m in (p.model_a, p.model_b)])
    for split in found.splits:
        for p in planned_runs:
            records = [found.models[split.name, m].record() for m in (p.model_a, p.model_b)]
            if records[0]["tokens_sha256"] != records[1]["tokens_sha256"]:
                raise BadInput(
                    f"{p.model_a} and {p.model_b} split the {split.name} texts into different "
                    "tokens: states of other tokens cannot be compared"
                )
    return found


def describe(run: results.Run, found: Statistics) -> None:
    """Record in a step's run.json which models and texts its numbers come from.

    The step depends on the models and texts, not on the saved statistics: deleting those to save
    space makes nothing stale. Models are named as they are given now, not as when they were read.
    """
    models = [model for model in (run.planned.model_a, run.planned.model_b) if model]
    first = {split.name: found.models[split.name, models[0]].record() for split in found.splits}
    for model in models:
        run.reads(*files.content_files(model))
    run.reads(*(split.path for split in found.splits))
    run.record(
        models={
            model: {**identity, "model": model}
            for model in models
            for identity in found.models["forget", model].record()["models"].values()
        },
        texts={split.name: split.identity() for split in found.splits},
        tokens={split: record["tokens"] for split, record in first.items()},
        left_out={split: record["left_out"] for split, record in first.items()},
        device=first["forget"]["device"],
        dtype=first["forget"]["dtype"],
    )
