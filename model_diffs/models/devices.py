"""Devices, dtypes and processes of a computation. Weight steps use it without transformers."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.core.processes import processes as processes
from model_diffs.core.processes import state
from model_diffs.core.processes import wait_for_processes as wait_for_processes

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is cuda, then mps, then cpu; under several processes each has its own cuda device.

    Raises BadInput for a device that is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` has no numbers
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {name!r} is not there; use --device auto or cpu") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on cuda, fp16 on mps, fp32 on cpu."""
    return DTYPES.get(name) or DTYPES[{"cuda": "bf16", "mps": "fp16"}.get(device.type, "fp32")]


def dtype_name(dtype: torch.dtype) -> str:
    """`fp32`, `fp16` or `bf16`, as the options spell it."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def wide_home(device: torch.device) -> torch.device:
    """Where fp64 tensors of a device live: there, or on the CPU where it has none (mps)."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def wide(x: Tensor) -> Tensor:
    """`x` in fp64, on the CPU where its device has none. Every sum in fp64 goes through here."""
    return x.to(wide_home(x.device)).double()


def free_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device, of the machine for any other."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


# ── processes ─────────────────────────────────────────────────────────────────────────────────────


def share(values: Sequence[Any]) -> list[Any]:
    """Every n-th of the values, for this one of n processes."""
    rank, count = processes()
    return list(values[rank::count])


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a CPU tensor over all processes, on each of them."""
    if processes()[1] == 1:
        return tensor
    total = tensor.to(state().device)
    torch.distributed.all_reduce(total)
    return total.cpu()


def gather_over_processes(values: list[Any]) -> list[Any]:
    """The values of all processes, on each of them, in the order before `share`."""
    count = processes()[1]
    if count == 1:
        return values
    parts: list[list[Any]] = [[] for _ in range(count)]
    torch.distributed.all_gather_object(parts, values)
    return [parts[i % count][i // count] for i in range(sum(len(part) for part in parts))]


def all_agree(value: bool) -> bool:
    """Whether it is so in every process: what each looks up for itself, such as its free memory,
    must not decide alone how they read together."""
    return all(gather_over_processes([value]))
