"""Saved activation statistics: where they lie, when they are fresh, what they hold.

NumPy only: a step that finds everything saved loads neither torch nor transformers. What is missing
is made by `activations.collect`, in one pass.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.core import naming, results
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun
from model_diffs.data.texts import Split, read_splits

FOLDER = "activation_cache"
TENSORS = "statistics.safetensors"

Array = NDArray[Any]


@dataclass
class ModelStatistics:
    """One model on one split. States: 0 the embedding output, then one per block; S = N + 1.

    Tokens are those that count: no padding, no BOS (unless kept), not the first N skipped.
    """

    documents: Array
    """`[documents]` position of each document in the split; those without a token are left out."""
    tokens: Array
    """`[documents]` tokens that count."""
    norm_l1: Array
    """`[documents, S]` Σ over tokens of ‖h‖₁."""
    norm_l2: Array
    """`[documents, S]` Σ over tokens of ‖h‖₂."""
    pooled: Array
    """`[documents, S, hidden]` fp32, mean over the document's tokens."""
    last: Array
    """`[documents, S, hidden]` fp32, state of the last token that is not padding."""
    mean: Array
    """`[S, hidden]` fp64, mean over all tokens."""
    scatter: Array
    """`[S, hidden, hidden]` fp64, Σ over tokens of (h − mean)(h − mean)ᵀ."""
    first_position_ratio: Array
    """`[S]` mean ‖h‖₂ at the first counted position over that at the others."""


@dataclass
class DifferenceStatistics:
    """Model B against model A on the same tokens of a split: per-document sums `[documents, S]`."""

    documents: Array
    tokens: Array
    dh_l1: Array
    """Σ over tokens of ‖Δh‖₁."""
    dh_l2: Array
    """Σ over tokens of ‖Δh‖₂."""
    dh_rel: Array
    """Σ over tokens of ‖Δh‖₂ / ‖h_A‖₂."""
    cosine: Array
    """Σ over tokens of the cosine of h_A and h_B."""


class Saved(NamedTuple):
    """Statistics on disk; tensors are read when asked for."""

    folder: Path
    kind: type

    def read(self, *names: str) -> Any:
        """The statistics, or only the named fields of them (the others are empty arrays)."""
        from safetensors import safe_open

        wanted = names or tuple(f.name for f in fields(self.kind))
        with safe_open(self.folder / TENSORS, framework="numpy") as handle:
            loaded = {name: handle.get_tensor(name) for name in wanted}
        empty = {f.name: np.empty(0) for f in fields(self.kind)}
        return self.kind(**{**empty, **loaded})

    def states(self, name: str) -> Iterator[Array]:
        """One state of a `[S, …]` tensor after the other: all at once can be gigabytes."""
        from safetensors import safe_open

        with safe_open(self.folder / TENSORS, framework="numpy") as handle:
            tensor = handle.get_slice(name)
            for state in range(tensor.get_shape()[0]):
                yield tensor[state]

    def record(self) -> dict[str, Any]:
        """The run.json beside them."""
        found = results.read_record(self.folder)
        if found is None:
            raise FileNotFoundError(self.folder / results.RECORD)
        return found

    def input_files(self) -> list[Path]:
        """The model files and texts that they come from, where still there."""
        paths = [self.folder.parent / entry["path"] for entry in self.record()["inputs"]]
        return [path for path in paths if path.exists()]


class Job(NamedTuple):
    """Statistics to be made: of a model (model_b empty), or of the change from A to B."""

    planned: PlannedRun
    split: Split
    model_a: str
    model_b: str

    @property
    def saved(self) -> Saved:
        return Saved(self.planned.folder, DifferenceStatistics if self.model_b else ModelStatistics)


@dataclass
class Statistics:
    """What a step reads: by split name and model, or by split name and changed model."""

    splits: Sequence[Split]
    models: Mapping[tuple[str, str], Saved]
    differences: Mapping[tuple[str, str], Saved]


# What changes the numbers, and so decides whether saved statistics still serve.
OPTIONS = ("max_samples", "max_length", "batch_size", "keep_bos", "skip_first", "device", "dtype")


def _job(options: argparse.Namespace, split: Split, model_a: str, model_b: str) -> Job:
    label = naming.comparison_label(model_a, model_b) if model_b else naming.model_label(model_a)
    arguments: dict[str, Any] = {name: getattr(options, name) for name in OPTIONS}
    arguments |= {"texts": split.sha256, "model_a": model_a}
    if model_b:
        arguments |= {"model_b": model_b, "cache_fp16": options.cache_fp16}
    folder = Path(options.outroot) / FOLDER / label / split.name
    planned = PlannedRun(folder, f"{label} {split.name}", arguments, model_a, model_b)
    return Job(planned, split, model_a, model_b)


def statistics(
    options: argparse.Namespace,
    models: Iterable[str] = (),
    differences: Iterable[tuple[str, str]] = (),
    fresh: bool = False,
) -> Statistics:
    """Statistics of `models` and of the changes A → B, read where saved, else made in one pass.

    `options` are those of `arguments.add_texts` and `add_compute`; with `fresh` all are made anew.
    Raises BadInput for splits that cannot be read or share lines, and what loading a model raises.
    """
    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    jobs = [_job(options, split, model, "") for model in dict.fromkeys(models) for split in splits]
    pairs = dict.fromkeys(differences)
    jobs += [_job(options, split, a, b) for a, b in pairs for split in splits]
    missing = [job for job in jobs if fresh or results.state(job.planned).status != "complete"]
    if missing:
        from model_diffs.activations import collecting

        collecting.collect(missing, options)
    return Statistics(
        splits,
        {(job.split.name, job.model_a): job.saved for job in jobs if not job.model_b},
        {(job.split.name, job.model_b): job.saved for job in jobs if job.model_b},
    )


def check_same_tokens(found: Statistics, model_a: str, model_b: str) -> None:
    """Raise BadInput where two models read other tokens in the same texts.

    Statistics saved by separate runs were not checked against each other when they were made.
    """
    for split in found.splits:
        a, b = (found.models[split.name, m].record()["tokens_sha256"] for m in (model_a, model_b))
        if a != b:
            raise BadInput(
                f"{model_a} and {model_b} split the {split.name} texts into different tokens: "
                "states of other tokens cannot be compared"
            )


def describe(run: results.Run, found: Statistics) -> None:
    """Tell a step's run.json which models and texts its numbers come from, and what was left out.

    The step depends on the models and texts, not on the saved statistics: removing those to save
    space makes nothing stale.
    """
    models = (run.planned.model_a, run.planned.model_b)
    used = {key: saved for key, saved in found.models.items() if key[1] in models}
    records = {split: saved.record() for (split, _), saved in used.items()}
    run.record(
        models={m: i for saved in used.values() for m, i in saved.record()["models"].items()},
        texts={split.name: split.identity() for split in found.splits},
        tokens={split: record["tokens"] for split, record in records.items()},
        left_out={split: record["left_out"] for split, record in records.items()},
        **{name: next(iter(records.values()))[name] for name in ("device", "dtype")},
    )
    for saved in used.values():
        run.reads(*saved.input_files())
