"""Make the activation statistics that are missing: one pass per model and split for all of them."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.numpy import save_file

from model_diffs.activations import passes
from model_diffs.activations.passes import Reader, SplitPass
from model_diffs.activations.store import TENSORS, Job, ModelStatistics
from model_diffs.activations.sums import DifferenceSums, ModelSums
from model_diffs.core import results
from model_diffs.data.texts import Split
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint, check_configs

# A first position this many times larger than the others is a sink that drowns what is measured.
SINK = 10.0
# Side by side only where the models take less than this share of the free memory.
SHARE = 0.5


@torch.inference_mode()
def collect(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """Make and save the statistics of `jobs`.

    Raises BadInput for models that cannot be read or compared, and for states that are not finite.
    """
    names = _order(jobs)
    checkpoints = {name: Checkpoint.open(name) for name in names}
    for job in jobs:
        if job.model_b:
            check_configs(checkpoints[job.model_a], checkpoints[job.model_b])
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    tokenizer = _common_tokenizer(names, options.trust_remote_code)
    splits = {job.split.name: job.split for job in jobs}
    todo = [_make_pass(split, jobs, tokenizer, options, device) for split in splits.values()]

    def load(name: str) -> Reader:
        return Reader(name, loading.load_for(options, name))

    def finished(one: SplitPass, read: Sequence[str]) -> None:
        for job in jobs:
            if job.split.name == one.split.name and (job.model_b or job.model_a) in read:
                _save(job, one, checkpoints, devices.dtype_name(dtype))

    # A model that has to be spread leaves no room for a second one.
    together = "no" if options.device_map and len(names) > 1 else options.side_by_side
    if _side_by_side(list(checkpoints.values()), together, device, dtype):
        passes.run_side_by_side([load(name) for name in names], todo, finished)
    else:
        cache = passes.StateCache(options.outroot, options.cache_fp16)
        passes.run_one_by_one(load, names, todo, finished, cache)
    devices.wait_for_processes()


def _order(jobs: Sequence[Job]) -> list[str]:
    """The models to read: bases first, since the changed ones are read against them."""
    bases = [job.model_a for job in jobs if job.model_b]
    changed = [job.model_b for job in jobs if job.model_b]
    alone = [job.model_a for job in jobs if not job.model_b]
    return list(dict.fromkeys([*bases, *changed, *alone]))


def _common_tokenizer(names: Sequence[str], trust_remote_code: bool) -> Any:
    """The tokenizer of the first model, after checking that the others read the same tokens."""
    first = loading.load_tokenizer(names[0], trust_remote_code)
    for name in names[1:]:
        other = loading.load_tokenizer(name, trust_remote_code)
        loading.check_same_tokenizer(names[0], first, name, other)
    return first


def _make_pass(
    split: Split,
    jobs: Sequence[Job],
    tokenizer: Any,
    options: argparse.Namespace,
    device: torch.device,
) -> SplitPass:
    tokens = passes.tokenise(
        tokenizer, split.texts, options.max_length, options.keep_bos, options.skip_first
    )
    one = SplitPass(split, tokens, options.batch_size, tokenizer.pad_token_id, device)
    documents = len(tokens.ids)
    for job in jobs:
        if job.split.name != split.name:
            continue
        if job.model_b:
            one.changes[job.model_a, job.model_b] = DifferenceSums(documents)
        else:
            one.own[job.model_a] = ModelSums(job.model_a, documents)
    return one


def _side_by_side(
    checkpoints: Sequence[Checkpoint], wanted: str, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether all models fit the device at once, with room left for the pass itself."""
    if wanted != "auto":
        return wanted == "yes"
    weights = sum(int(np.prod(c.shape(name))) for c in checkpoints for name in c.names)
    needed = weights * dtype.itemsize + sum(_moment_bytes(c) for c in checkpoints)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    return len(checkpoints) == 1 or needed < SHARE * free


def _moment_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of one split's second moments, fp64: states × width²."""
    matrices = checkpoint.matrices()
    states = max(matrix.layer for matrix in matrices) + 2
    width = max(m.shape[1] for m in matrices if m.component == "embed")
    return states * width * width * 8


def _save(job: Job, one: SplitPass, checkpoints: dict[str, Checkpoint], dtype: str) -> None:
    pair = (job.model_a, job.model_b)
    # Let go here: for a wide model the sums are gigabytes.
    sums: ModelSums | DifferenceSums = (
        one.changes[pair] if job.model_b else one.own.pop(job.model_a)
    )
    found = sums.statistics(one.tokens.documents, one.tokens.counts)
    involved = [checkpoints[name] for name in (job.model_a, job.model_b) if name]
    with results.open_run(job.planned) as run:
        arrays = {f.name: np.ascontiguousarray(getattr(found, f.name)) for f in fields(found)}
        save_file(arrays, run.path / TENSORS)
        run.reads(one.split.path, *(file for c in involved for file in c.files))
        run.record(
            models={c.model: c.identity() for c in involved},
            texts={one.split.name: one.split.identity()},
            device=str(one.device),
            dtype=dtype,
            tokens=int(one.tokens.counts.sum()),
            tokens_sha256=hashlib.sha256(repr(one.tokens.ids).encode()).hexdigest(),
            left_out=one.tokens.left_out,
        )
        if isinstance(found, ModelStatistics):
            run.record(first_position_ratio=_warn_of_sink(job, found.first_position_ratio))


def _warn_of_sink(job: Job, ratios: np.ndarray) -> float | None:
    """Largest ratio over the states, said aloud where it would drown the rest."""
    if np.isnan(ratios).all():
        return None
    largest = float(np.nanmax(ratios))
    if largest > SINK:
        print(
            f"warning: {job.planned.label}: the first position's norm is {largest:.0f} times the "
            f"others' at state {int(np.nanargmax(ratios))} (an attention sink); "
            "--skip-first 1 leaves it out",
            file=sys.stderr,
        )
    return largest
