"""Checks before a long run: packages, device, models, memory and disk."""

import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint, match
from model_diffs.models.files import cached_snapshot, hub_errors
from model_diffs.pipeline.preflight import Count, Finding, attempt

PROJECT = "model-diffs"
# Bytes per weight: fp32 weights, gradients and AdamW's two moments; with LoRA the weights alone.
TRAINING_BYTES, LORA_BYTES = 16, 4
_GB = 1e9


def check_packages() -> Iterator[Finding]:
    """The declared packages are installed, in the tested versions."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        yield Finding("error", "packages", f"{PROJECT} is not installed: run uv sync")
        return
    needed = [one for one in declared if not one.marker or one.marker.evaluate({"extra": ""})]
    missing = 0
    for one in needed:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            missing += 1
            yield Finding("error", "packages", f"{one.name} is missing: run uv sync")
            continue
        if version not in one.specifier:
            says = f"{one.name} {version} is not in the tested range {one.specifier}: run uv sync"
            yield Finding("warning", "packages", says)
    yield Finding("ok", "packages", f"{len(needed) - missing} of those declared are installed")


def is_deterministic(device: torch.device) -> bool:
    """Whether a seeded step of a small network gives the same gradient twice, bit for bit."""
    gradients = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 128, generator=generator).to(device)
        weight = torch.randn(128, 128, generator=generator).to(device).requires_grad_()
        (x @ weight).softmax(-1).square().sum().backward()
        assert weight.grad is not None
        gradients.append(weight.grad.cpu())
    return torch.equal(*gradients)


def check_device(options: Compute) -> Iterator[Finding]:
    """The device exists, and gives the same result twice."""
    try:
        device = devices.pick_device(options.device)
    except BadInput as error:
        yield Finding("error", "device", str(error))
        return
    dtype = devices.dtype_name(devices.pick_dtype(options.dtype, device))
    says = f"{device}, {dtype}, torch {torch.__version__}"
    if device.type == "cuda":
        says += f", {torch.cuda.get_device_name(device)}, cuda {torch.version.cuda}"
    if device.type == "cpu":
        says += f", {torch.get_num_threads()} threads"
    yield Finding("ok", "device", says)
    if is_deterministic(device):
        says = "one step run twice gave the same bits; report the device"
        yield Finding("ok", "determinism", says)
    else:
        says = "one step run twice gave other bits; repeat runs and report the spread"
        yield Finding("warning", "determinism", says)


# ── models ────────────────────────────────────────────────────────────────────────────────────────


class Sizes(NamedTuple):
    """How large a model is."""

    weights: int
    stored_bytes: int
    to_download_bytes: int


class Models:
    """The models of an experiment, the base first. Nothing is downloaded."""

    def __init__(self) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}
        """Of models on this disk."""
        self.tokenizers: dict[str, Any] = {}
        self.sizes: list[Sizes] = []

    def check(self, models: Sequence[str]) -> Iterator[Finding]:
        """Every model can be had; those on this disk have one architecture and tokenizer."""
        for model in models:
            yield attempt("models", partial(self._find, model))
        for model in self.checkpoints:
            if models[0] in self.checkpoints and model != models[0]:
                yield attempt("architecture", partial(self._match, models[0], model))
            yield attempt("tokenizers", partial(self._read_tokenizer, model))

    def _find(self, model: str) -> str:
        found = None if naming.is_local(model) else cached_snapshot(model)
        if not naming.is_local(model) and not (found and [*found.glob("*.safetensors")]):
            self.sizes.append(hub_sizes(model))
            return f"{model}: on the hub, {self.sizes[-1].stored_bytes / _GB:.1f} GB to download"
        stored = Checkpoint.open(str(found or model))
        self.checkpoints[model] = stored
        size = sum(file.stat().st_size for file in stored.files)
        self.sizes.append(Sizes(stored.weights, size, to_download_bytes=0))
        return f"{model}: {stored.weights / 1e6:.1f} M weights, {stored.config.get('model_type')}"

    def _match(self, base: str, model: str) -> str:
        match(self.checkpoints[base], self.checkpoints[model])
        return f"{model} can be subtracted from {base}"

    def _read_tokenizer(self, model: str) -> str:
        self.tokenizers[model] = loading.load_tokenizer(str(self.checkpoints[model].folder))
        first, tokenizer = next(iter(self.tokenizers.items()))
        loading.check_same_tokenizer(first, tokenizer, model, self.tokenizers[model])
        return f"{model} splits texts as {first} does"

    def token_counter(self, model: str) -> Count | None:
        """A function that counts tokens; None where there is no tokenizer on this disk."""
        tokenizer = self.tokenizers.get(model)
        return tokenizer and (lambda lines: [len(i) for i in tokenizer(list(lines))["input_ids"]])


def hub_sizes(model: str) -> Sizes:
    """Size of a hub model without its weights. Raises BadInput where the hub does not give it."""
    from huggingface_hub import HfApi

    repository, _, revision = model.partition("@")
    with hub_errors(model):
        info = HfApi(token=os.environ.get("HF_TOKEN") or False).model_info(
            repository, revision=revision or None, files_metadata=True
        )
    files = [one for one in info.siblings or [] if one.rfilename.endswith(".safetensors")]
    size = sum(one.size or 0 for one in files)
    return Sizes(info.safetensors.total if info.safetensors else size // 2, size, size)


# ── memory and disk ───────────────────────────────────────────────────────────────────────────────


def check_memory(sizes: Sizes, options: Compute, lora: bool) -> Iterator[Finding]:
    """Memory for one model in the dtype of the computation, and for training it."""
    try:
        device = devices.pick_device(options.device)
    except BadInput:
        return  # reported by check_device
    free = devices.free_memory(device)
    one = sizes.weights * devices.pick_dtype(options.dtype, device).itemsize
    train = sizes.weights * (LORA_BYTES if lora else TRAINING_BYTES)
    says = f"{free / _GB:.1f} GB of {device if device.type == 'cuda' else 'memory'} free"
    if one > free:
        says += f", one model takes {one / _GB:.1f} GB: use --dtype bf16, --device-map auto, or a "
        yield Finding("error", "memory", f"{says}larger device")
    else:
        yield Finding("ok", "memory", f"{says}, one model takes {one / _GB:.2f} GB")
    needs = f"training takes {train / _GB:.2f} GB plus activations"
    if train > free:
        says = f"{needs}, {free / _GB:.1f} GB are free: use --lora-rank, or shard over devices"
        yield Finding("warning", "memory", says)
    else:
        yield Finding("ok", "memory", needs)


def check_disk(folder: Path, sizes: Sequence[Sizes], unlearned: int) -> Finding:
    """Disk space for downloads and for the models that will be made."""
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = sizes[0].stored_bytes * unlearned + sum(one.to_download_bytes for one in sizes)
    says = (
        f"{free / _GB:.1f} GB free, {needed / _GB:.2f} GB needed for {unlearned} unlearned models"
    )
    if needed > free:
        return Finding("error", "disk", f"{says} and downloads: free some, or make fewer at a time")
    return Finding("ok", "disk", says)
