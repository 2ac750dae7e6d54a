"""What the options of `unlearn.py` ask for: texts, processes, numbers, and what to warn of."""

import argparse
import dataclasses
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from model_diffs.core.errors import BadInput
from model_diffs.core.results import is_main_process
from model_diffs.data.texts import Split, check_disjoint, read_split
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES, dtype_name, pick_device
from model_diffs.unlearning import Method, sharding
from model_diffs.unlearning.data import Tokens
from model_diffs.unlearning.preparing import state_splits
from model_diffs.unlearning.saving import stored_dtype
from model_diffs.unlearning.trainer import Schedule, Trainer

DEFAULT_STEERING = 20.0


def read(options: argparse.Namespace) -> tuple[Split, Split]:
    """Forget and retain texts. Raises BadInput where they are missing or share a line."""
    forget = read_split(options.forget_data, "forget", options.max_samples, "--forget-data")
    retain = read_split(options.retain_data, "retain", options.max_samples, "--retain-data")
    check_disjoint(forget, retain)
    return forget, retain


def engine(options: argparse.Namespace) -> tuple[Accelerator, torch.dtype]:
    """accelerate on the device, and the dtype of the weights while they are trained."""
    device = pick_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mixed = "bf16" if options.dtype == "auto" and device.type == "cuda" else "no"
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed,
        # Representation losses leave the blocks above their target without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    return accelerator, DTYPES["fp32" if options.dtype == "auto" else options.dtype]


def sharding_plan(options: argparse.Namespace) -> Any:
    """accelerate's FSDP settings where the launcher asked for them, else None.

    Raises BadInput for what sharded weights do not go with.
    """
    if not sharding.wanted():
        return None
    for flag, given in (
        ("--lora-rank", options.lora_rank),
        ("--checkpoint-every", options.checkpoint_every),
        # torch's own has no rule for the norm of a matrix that lies in pieces
        ("--optimizer adafactor", options.optimizer == "adafactor"),
    ):
        if given:
            raise BadInput(f"{flag} and sharded weights do not go together: leave one of them")
    return sharding.take_over()


def schedule(options: argparse.Namespace, device: torch.device) -> Schedule:
    """The trainer's numbers from the options."""
    fields = {f.name for f in dataclasses.fields(Schedule)}
    values = {k: v for k, v in vars(options).items() if k in fields}
    if values["gradient_checkpointing"] is None:
        values["gradient_checkpointing"] = device.type == "cuda"
    return Schedule(**values)


def with_steering(options: argparse.Namespace, method: Method) -> argparse.Namespace:
    """The options with a steering coefficient that `resolve` takes: a number, or auto."""
    given = options.steering_coeff
    if given is not None and method.name in ("cb", "cb_lat"):
        warn(f"--steering-coeff {given} has no effect on {method.name}: a cosine has no scale")
    auto = given == "auto" and method.name == "rmu"
    resolved = "auto" if auto else DEFAULT_STEERING if given in (None, "auto") else float(given)
    return argparse.Namespace(**{**vars(options), "steering_coeff": resolved})


def check_lengths(model: Any, splits: list[Tokens]) -> None:
    """Raise BadInput where a text has more tokens than the model has positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(ids) for split in splits for ids in (*split.train, *split.held_out))
    if limit and longest > limit:
        raise BadInput(f"--max-length: texts of {longest} tokens, the model takes {limit}")


def warn(line: str) -> None:
    """One line on stderr, from the first process alone."""
    if is_main_process():
        print(f"warning: {line}", file=sys.stderr, flush=True)


def warn_of(
    trainer: Trainer,
    options: argparse.Namespace,
    base: Checkpoint,
    weights_dtype: torch.dtype,
) -> None:
    """One line for each setting that changes what the run means."""
    if options.grad_accum_steps > 1:
        warn(
            f"a step averages {options.grad_accum_steps} batches, so there are "
            f"{options.grad_accum_steps} times fewer steps at the same --lr"
        )
    if weights_dtype != torch.float32:
        warn(
            f"weights are trained in {dtype_name(weights_dtype)}: updates below its "
            "resolution are lost; --dtype auto keeps fp32 weights"
        )
    cached = stored_dtype(base, "base")
    keeps = state_splits(trainer.method, trainer.settings) and not options.lora_rank
    if keeps and cached.itemsize < 4:
        warn(
            f"the base's states are kept in {dtype_name(cached)}, as its weights are: "
            "the retain term does not start at exactly zero"
        )
    if options.eval_split == 0:
        warn("--eval-split 0 trains on every text and measures no NLL")
