"""Make missing activation statistics: one pass per model and split for all of them."""

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from model_diffs.activations import passes, sinks
from model_diffs.activations.blocks import run_by_blocks
from model_diffs.activations.passes import Reader, SplitPass
from model_diffs.activations.saved import FOLDER, TENSORS, ModelStatistics, Saved, pick
from model_diffs.activations.sinks import SINK
from model_diffs.activations.skeleton import Skeleton
from model_diffs.activations.sums import DifferenceSums, ModelSums
from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Pass
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint, check_configs


@torch.inference_mode()
def collect(missing: Sequence[Saved], options: Pass) -> None:
    """Compute and save the statistics of `missing`.

    Raises BadInput for models that cannot be read or compared, and for states that are not finite.
    """
    # Bases first: the changed models are read against them.
    names = [one.model_a for one in missing if one.model_b]
    names = list(dict.fromkeys(names + [one.model_b or one.model_a for one in missing]))
    checkpoints = {name: Checkpoint.open(name) for name in names}
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    tokenizer = loading.common_tokenizer(names, options.trust_remote_code)
    splits = {one.split.name: one.split for one in missing}
    todo = {name: SplitPass.of(s, tokenizer, options, device) for name, s in splits.items()}
    passes.check_memory([*todo.values()], checkpoints[names[0]])
    for one in missing:
        split_pass = todo[one.split.name]
        documents = len(split_pass.tokens.ids)
        if one.model_b:
            check_configs(checkpoints[one.model_a], checkpoints[one.model_b])
            sums = DifferenceSums(one.planned.label, documents)
            split_pass.changes[one.model_a, one.model_b] = sums
        else:
            split_pass.own[one.model_a] = ModelSums(one.model_a, documents)

    def load(name: str) -> Reader:
        return Reader(name, loading.load_for(options, name, options.device_map))

    def finished(split_pass: SplitPass, read: Sequence[str]) -> None:
        for one in missing:
            if one.split.name == split_pass.split.name and (one.model_b or one.model_a) in read:
                _save(one, split_pass, checkpoints, devices.dtype_name(dtype))

    how = _how([*checkpoints.values()], options, device, dtype)
    if options.cache_fp16 and results.is_main_process():
        says = "states of the base are kept in fp16, whose rounding shows in small differences"
        why = says if how == "no" else "has no effect: no disk cache is needed here"
        print(f"warning: --cache-fp16: {why}", file=sys.stderr)
    if how == "blocks":
        remote = options.trust_remote_code
        skeletons = [Skeleton.open(name, device, dtype, remote) for name in names]
        run_by_blocks(skeletons, [*todo.values()], finished)
    elif how == "yes":
        passes.run_side_by_side([load(name) for name in names], [*todo.values()], finished)
    else:
        cache = Path(options.outroot) / FOLDER
        passes.run_one_by_one(load, names, [*todo.values()], finished, cache, options.cache_fp16)
    sinks.keep(options.outroot)
    devices.wait_for_processes()


def _how(
    stored: Sequence[Checkpoint], options: Pass, device: torch.device, dtype: torch.dtype
) -> str:
    """Whether models are read side by side (`yes`), by `blocks`, or one by one (`no`)."""
    if options.device_map:
        # A model that has to be spread leaves no room for a second one.
        return "no" if len(stored) > 1 else "yes"
    if options.side_by_side != "auto":
        return options.side_by_side
    moments = sum(_moment_bytes(one) for one in stored)
    if len(stored) == 1:
        fits = stored[0].weights * dtype.itemsize + moments < devices.free_memory(device)
    else:
        fits = loading.fit_together(stored, "auto", device, dtype, moments)
    if fits:
        return "yes"
    try:
        for one in stored:
            Skeleton.open(one.model, device, dtype, options.trust_remote_code)
    except BadInput as refusal:
        print(f"{refusal}: one model after another is read instead", file=sys.stderr)
        return "no"
    return "blocks"


def _moment_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of one split's second moments, fp64: states × width²."""
    states, width = passes.state_shape(checkpoint)
    return states * width * width * 8


def _save(
    one: Saved, split_pass: SplitPass, checkpoints: dict[str, Checkpoint], dtype: str
) -> None:
    sums: ModelSums | DifferenceSums
    if one.model_b:
        sums = split_pass.changes[one.model_a, one.model_b]
    else:
        sums = split_pass.own.pop(one.model_a)  # released: for a wide model these are gigabytes
    tokens = split_pass.tokens
    found = sums.statistics(tokens.documents, tokens.counts)
    if results.is_main_process() and not one.complete():
        shutil.rmtree(one.planned.folder, ignore_errors=True)  # damaged, if there
    with results.open_run(one.planned) as run:
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(found).items()}
        save_file(arrays, run.path / TENSORS)
        names = [name for name in (one.model_a, one.model_b) if name]
        run.record(
            models={name: checkpoints[name].identity() for name in names},
            texts={one.split.name: one.split.identity()},
            device=str(split_pass.device),
            dtype=dtype,
            tokens=int(tokens.counts.sum()),
            tokens_sha256=hashlib.sha256(repr(tokens.ids).encode()).hexdigest(),
            left_out=tokens.left_out,
        )
        if isinstance(found, ModelStatistics):
            ratios = pick(found.first_position_ratio, "hidden", axis=0)
            run.record(first_position_ratio=_warn_of_sink(one, ratios))


def _warn_of_sink(one: Saved, ratios: np.ndarray) -> float | None:
    """The largest ratio over the states; a warning where it is that of an attention sink."""
    if np.isnan(ratios).all():
        return None
    largest = float(np.nanmax(ratios))
    if largest > SINK:
        print(
            f"warning: {one.planned.label}: the norm of the first position is {largest:.0f} times "
            f"the others' at state {int(np.nanargmax(ratios))} (an attention sink); "
            "--skip-first 1 leaves it out",
            file=sys.stderr,
        )
    return largest
