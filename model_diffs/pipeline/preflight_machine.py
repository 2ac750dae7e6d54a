"""Before a long run: packages, device, memory and disk, against what is needed."""

import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.pipeline.preflight import Finding

PROJECT = "model-diffs"
# Bytes per weight: fp32 weights, gradients and AdamW's two moments.
TRAINING_BYTES = 16
_GB = 1e9


class Sizes(NamedTuple):
    """How large a model is."""

    weights: int
    stored_bytes: int
    to_download_bytes: int


# ── packages ──────────────────────────────────────────────────────────────────────────────────────


def check_packages() -> Iterator[Finding]:
    """The packages that the project declares, against the versions that are installed."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        yield Finding("error", "packages", f"{PROJECT} is not installed: run uv sync")
        return
    found = 0
    for requirement in declared:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding("error", "packages", f"{requirement.name} is missing: run uv sync")
            continue
        found += 1
        if version not in requirement.specifier:
            yield Finding(
                "warning",
                "packages",
                f"{requirement.name} {version} is outside {requirement.specifier}, which was "
                "tested: run uv sync",
            )
    yield Finding("ok", "packages", f"{found} of those declared are installed")


# ── device, memory, disk ──────────────────────────────────────────────────────────────────────────


def _twice_the_same(device: Any) -> bool:
    """Whether a seeded step of a small network gives the same gradient twice, bit for bit."""
    import torch

    gradients = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 128, generator=generator).to(device)
        weight = torch.randn(128, 128, generator=generator).to(device).requires_grad_()
        (x @ weight).softmax(-1).square().sum().backward()
        assert weight.grad is not None
        gradients.append(weight.grad.cpu())
    return bool(torch.equal(*gradients))


def check_device(name: str, dtype: str) -> Iterator[Finding]:
    """The device is there, and repeats itself."""
    import torch

    from model_diffs.models.devices import dtype_name, pick_device, pick_dtype

    try:
        device = pick_device(name)
    except BadInput as error:
        yield Finding("error", "device", str(error))
        return
    chosen = dtype_name(pick_dtype(dtype, device))
    detail = f"{device}, {chosen}, torch {torch.__version__}"
    if device.type == "cuda":
        detail += f", {torch.cuda.get_device_name(device)}, cuda {torch.version.cuda}"
    if device.type == "cpu":
        detail += f", {torch.get_num_threads()} threads"
    yield Finding("ok", "device", detail)
    if _twice_the_same(device):
        yield Finding("ok", "determinism", "one step, twice: the same bits; report the device")
    else:
        yield Finding(
            "warning", "determinism", "one step, twice: not the same bits; repeat runs and report"
        )


def _available_bytes(device_name: str) -> tuple[int, str]:
    import psutil
    import torch

    from model_diffs.models.devices import pick_device

    device = pick_device(device_name)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], str(device)
    return psutil.virtual_memory().available, "memory"


def check_memory(sizes: Sizes, device: str, dtype: str, lora: bool) -> Iterator[Finding]:
    """Room for one model as it is read, and for training the base."""
    from model_diffs.models.devices import pick_device, pick_dtype

    try:
        free, where = _available_bytes(device)
        width = pick_dtype(dtype, pick_device(device)).itemsize
    except BadInput:
        return  # said by check_device
    one, train = sizes.weights * width, sizes.weights * (4 if lora else TRAINING_BYTES)
    says = f"{free / _GB:.1f} GB of {where} free"
    if one > free:
        yield Finding(
            "error",
            "memory",
            f"{says}, one model takes {one / _GB:.1f} GB: give --dtype bf16, --device-map auto, or "
            "a larger device",
        )
    else:
        yield Finding("ok", "memory", f"{says}, one model takes {one / _GB:.2f} GB")
    if train > free:
        yield Finding(
            "warning",
            "memory",
            f"{says}, training takes {train / _GB:.1f} GB and its activations: give --lora-rank, "
            "or shard over several devices",
        )
    else:
        yield Finding("ok", "memory", f"training takes {train / _GB:.2f} GB and its activations")


def check_disk(folder: Path, sizes: Sequence[Sizes], unlearned: int) -> Iterator[Finding]:
    """Room for what is to be downloaded and for the models that will be made."""
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = sizes[0].stored_bytes * unlearned + sum(one.to_download_bytes for one in sizes)
    says = (
        f"{free / _GB:.1f} GB free, {needed / _GB:.2f} GB wanted for {unlearned} unlearned models"
    )
    if needed > free:
        yield Finding("error", "disk", f"{says} and downloads: make room, or make fewer at a time")
    else:
        yield Finding("ok", "disk", says)
