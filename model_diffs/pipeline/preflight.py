"""Checks before a long run: packages, device, models, texts, questions, memory, disk.

A finding is its level (`ok`, `warning`, `error`), what was checked, and what was found; for
warnings and errors also what to do. Nothing is downloaded or written.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute
from model_diffs.core.progress import progress
from model_diffs.data.questions import load_questions
from model_diffs.data.texts import Split, check_disjoint, read_split
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint, match
from model_diffs.models.files import cached_snapshot, hub_errors

Finding = tuple[str, str, str]
PROJECT = "model-diffs"
UNEVEN = 1.5  # ratio of sizes or of median lengths above which a warning is given
FEW = 50  # samples
# Bytes per weight: fp32 weights, gradients and AdamW's two moments; with LoRA the weights alone.
TRAINING_BYTES, LORA_BYTES = 16, 4
_GB = 1e9


def guarded(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of a check; its BadInput becomes an error of `subject`."""
    try:
        yield from findings
    except BadInput as error:
        yield "error", subject, str(error)


def judged(
    subject: str, says: str, fault: object, otherwise: str, level: str = "warning"
) -> Finding:
    """`says` where there is no fault, else `otherwise`."""
    return (level, subject, otherwise) if fault else ("ok", subject, says)


def check_packages() -> Iterator[Finding]:
    """The declared packages are installed, in the tested versions."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        yield "error", "packages", f"{PROJECT} is not installed: run uv sync"
        return
    found = 0
    for one in declared:
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            yield "error", "packages", f"{one.name} is missing: run uv sync"
            continue
        found += 1
        if version not in one.specifier:
            says = f"{one.name} {version} is not in the tested range {one.specifier}: run uv sync"
            yield "warning", "packages", says
    yield "ok", "packages", f"{found} of those declared are installed"


def is_deterministic(device: torch.device) -> bool:
    """Whether a seeded step of a small network gives the same gradient twice, bit for bit."""

    def gradient() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 128, generator=generator).to(device)
        weight = torch.randn(128, 128, generator=generator).to(device).requires_grad_()
        return torch.autograd.grad((x @ weight).softmax(-1).square().sum(), weight)[0]

    return torch.equal(gradient(), gradient())


def check_device(options: Compute) -> Iterator[Finding]:
    """The device exists, and gives the same result twice."""
    device = devices.pick_device(options.device)
    dtype = devices.dtype_name(devices.pick_dtype(options.dtype, device))
    says = f"{device}, {dtype}, torch {torch.__version__}"
    if device.type == "cuda":
        says += f", {torch.cuda.get_device_name(device)}, cuda {torch.version.cuda}"
    if device.type == "cpu":
        says += f", {torch.get_num_threads()} threads"
    yield "ok", "device", says
    yield judged(
        "determinism",
        "one step run twice gave the same bits; report the device",
        not is_deterministic(device),
        "one step run twice gave other bits; repeat runs and report the spread",
    )


# ── models ────────────────────────────────────────────────────────────────────────────────────────


class Sizes(NamedTuple):
    """How large a model is."""

    weights: int
    stored_bytes: int
    to_download_bytes: int


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


@dataclass
class Models:
    """The models of an experiment, the base first; `checkpoints` are those on this disk."""

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    tokenizers: dict[str, Any] = field(default_factory=dict)
    sizes: list[Sizes] = field(default_factory=list)

    def check(self, models: Sequence[str]) -> Iterator[Finding]:
        """Every model can be had; those on this disk are finite and of one architecture and
        tokenizer."""
        for model in models:
            yield from guarded("models", self._find(model))
        for model in self.checkpoints:
            if models[0] in self.checkpoints and model != models[0]:
                yield from guarded("architecture", self._match(models[0], model))
            yield from guarded("tokenizers", self._read_tokenizer(model))

    def _find(self, model: str) -> Iterator[Finding]:
        found = None if naming.is_local(model) else cached_snapshot(model)
        if not naming.is_local(model) and not (found and [*found.glob("*.safetensors")]):
            self.sizes.append(hub_sizes(model))
            gigabytes = self.sizes[-1].stored_bytes / _GB
            yield "ok", "models", f"{model}: on the hub, {gigabytes:.1f} GB to download"
            return
        stored = Checkpoint.open(str(found or model))
        stored.check_finite(progress(stored.entries, f"weights of {model}", unit="tensor"))
        self.checkpoints[model] = stored
        size = sum(file.stat().st_size for file in stored.files)
        self.sizes.append(Sizes(stored.weights, size, to_download_bytes=0))
        kind = stored.config.get("model_type")
        yield "ok", "models", f"{model}: {stored.weights / 1e6:.1f} M weights, {kind}"

    def _match(self, base: str, model: str) -> Iterator[Finding]:
        match(self.checkpoints[base], self.checkpoints[model])
        yield "ok", "architecture", f"{model} can be subtracted from {base}"

    def _read_tokenizer(self, model: str) -> Iterator[Finding]:
        self.tokenizers[model] = loading.load_tokenizer(str(self.checkpoints[model].folder))
        first, tokenizer = next(iter(self.tokenizers.items()))
        loading.check_same_tokenizer(first, tokenizer, model, self.tokenizers[model])
        yield "ok", "tokenizers", f"{model} splits texts as {first} does"


# ── texts and questions ───────────────────────────────────────────────────────────────────────────


def normalised(text: str) -> str:
    """A text without case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", text.lower()))


def check_texts(
    forget_text: str, retain_text: str, tokenizer: Any | None, max_length: int
) -> Iterator[Finding]:
    """Both splits: readable, disjoint, balanced, of similar length, without repeats.

    Without a tokenizer words are counted and `max_length` is not checked.
    """
    splits = []
    for path, name in ((forget_text, "forget"), (retain_text, "retain")):
        try:
            splits.append(read_split(path, name))
        except BadInput as error:
            yield "error", f"{name} texts", str(error)
            continue
        samples, different = len(splits[-1].texts), len(set(splits[-1].texts))
        if samples > different:
            says = f"{samples - different} of {samples} lines of {path} are repeats and may be both"
            yield "warning", f"{name} texts", f"{says} trained on and held out: remove them"
        if samples < FEW:
            says = f"{samples} samples in {path}: intervals will be wide; add some"
            yield "warning", f"{name} texts", says
    if len(splits) < 2:
        return
    yield from guarded("overlap", _check_overlap(*splits))
    forget, retain = (len(split.texts) for split in splits)
    says = f"{forget} forget and {retain} retain samples"
    otherwise = f"{says}: the smaller is cycled; even them out"
    yield judged("balance", says, _uneven(forget, retain), otherwise)
    lengths = {}
    for split in splits:
        encoded = tokenizer(split.texts)["input_ids"] if tokenizer else map(str.split, split.texts)
        lengths[split.name] = [len(parts) for parts in encoded]
    says = ", ".join(f"{n} {median(v):.0f} (longest {max(v)})" for n, v in lengths.items())
    says = f"median {'tokens' if tokenizer else 'words'}: {says}"
    otherwise = f"{says}; a probe may separate the splits by length alone: match them"
    yield judged("lengths", says, _uneven(*(median(v) for v in lengths.values())), otherwise)
    cut = sum(length > max_length for values in lengths.values() for length in values)
    if tokenizer and cut:
        yield "warning", "lengths", f"{cut} samples are cut at {max_length} tokens: --max-length"


def _uneven(one: float, other: float) -> bool:
    return max(one, other) > UNEVEN * max(1, min(one, other))


def _check_overlap(forget: Split, retain: Split) -> Iterator[Finding]:
    check_disjoint(forget, retain)
    near = {normalised(t) for t in forget.texts} & {normalised(t) for t in retain.texts} - {""}
    otherwise = f"{len(near)} texts are in both splits but for case and punctuation, such as "
    otherwise += f"{min(near, default='')[:50]!r}: remove them from one"
    yield judged("overlap", "forget and retain share no line", near, otherwise)


def check_questions(path: str, forget_text: str, retain_text: str) -> Iterator[Finding]:
    """The questions are readable, and no text contains an answered question word for word."""
    questions = load_questions(path)
    splits = [read_split(forget_text, "forget"), read_split(retain_text, "retain")]
    told = {normalised(line) for split in splits for line in split.texts}
    same = [q.id for q in questions if normalised(q.sentences()[q.answer]) in told]
    domains = Counter(question.domain for question in questions)
    says = ", ".join(f"{count} {domain}" for domain, count in domains.items())
    yield judged(
        "questions",
        f"{says}; none is word for word in the texts",
        same,
        f"{len(same)} answers are word for word in the texts (such as {', '.join(same[:1])}): "
        "accuracy would measure the sentence; reword them",
    )


# ── memory and disk ───────────────────────────────────────────────────────────────────────────────


def check_memory(sizes: Sizes, options: Compute, lora: bool) -> Iterator[Finding]:
    """Memory for one model in the dtype of the computation, and for training it."""
    device = devices.pick_device(options.device)
    free = devices.free_memory(device)
    one = sizes.weights * devices.pick_dtype(options.dtype, device).itemsize
    train = sizes.weights * (LORA_BYTES if lora else TRAINING_BYTES)
    place = device if device.type == "cuda" else "memory"
    says = f"{free / _GB:.1f} GB of {place} free, one model takes {one / _GB:.2f} GB"
    otherwise = f"{says}: use --dtype bf16, --device-map auto, or a larger device"
    yield judged("memory", says, one > free, otherwise, "error")
    needs = f"training takes {train / _GB:.2f} GB plus activations"
    otherwise = f"{needs}, {free / _GB:.1f} GB are free: use --lora-rank, or shard over devices"
    yield judged("memory", needs, train > free, otherwise)


def check_disk(folder: Path, sizes: Sequence[Sizes], unlearned: int) -> Finding:
    """Disk space for downloads and for the models that will be made."""
    place = folder.absolute()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free
    needed = sizes[0].stored_bytes * unlearned + sum(one.to_download_bytes for one in sizes)
    needs = f"{needed / _GB:.2f} GB needed for {unlearned} unlearned models"
    says = f"{free / _GB:.1f} GB free, {needs}"
    otherwise = f"{says} and downloads: free some, or make fewer at a time"
    return judged("disk", says, needed > free, otherwise, "error")
