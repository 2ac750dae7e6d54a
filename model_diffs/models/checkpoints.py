"""Stored weights, read by name from mapped files; never a whole model, never a whole shard.

    base, changed = Checkpoint.open("org/name"), Checkpoint.open("models/changed")
    for matrix, W_A, others in lockstep(base, [changed], base.matrices()): ...

A tensor of a safetensors file is a view of the mapped file: it takes no memory of its own until it
is converted. It must not be written to.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.models import architectures, configuration, files
from model_diffs.models.architectures import Matrix

if TYPE_CHECKING:
    import torch

# What two models must share so that subtracting their weights means something.
_COMPARED = (
    *("model_type", "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "intermediate_size"),
    "num_local_experts",
)
# As safetensors and torch spell them. Numbers of any other kind stand for weights, with scales.
_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
_HALF = {"F16": "fp16", "BF16": "bf16", "float16": "fp16", "bfloat16": "bf16"}
_CHUNK = 1 << 22  # entries converted at a time where only a sum is wanted: 32 MiB in fp64


# ── a checkpoint ──────────────────────────────────────────────────────────────────────────────────


class Entry(NamedTuple):
    """A stored tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As in the file, for example F32 or BF16."""


@dataclass(frozen=True)
class Checkpoint:
    """The stored weights of one model. Opening reads headers only."""

    model: str
    """As it was given."""
    folder: Path
    config: Mapping[str, Any]
    """config.json of the language model (`text_config` of a multimodal one)."""
    files: tuple[Path, ...]
    """Everything a result depends on: config.json, the index, the weight files."""
    entries: Mapping[str, Entry]
    """Stored tensors by name, in natural order; buffers and tied copies are left out."""
    header_sha256: str
    """Over the headers of all weight files, in order."""
    _handles: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, model: str) -> "Checkpoint":
        """Open a model folder or hub model.

        Raises BadInput where the config or the weights are missing, damaged or quantised.
        """
        folder = files.resolve(model)
        config = files.read_config(folder)
        configuration.check_not_quantised(model, config)
        index, weights = files.weight_files(folder)
        handles: dict[Path, Any] = {}
        entries: dict[str, Entry] = {}
        digest = hashlib.sha256()
        for file in weights:
            open_file = _open_legacy if file.suffix == ".bin" else _open_safetensors
            handles[file], found, header = open_file(file)
            entries.update(found)
            digest.update(hashlib.sha256(header).hexdigest().encode())
        missing = sorted(set(files.weight_map(index)) - set(entries)) if index else []
        if missing:
            raise BadInput(f"{index} promises {missing[0]}, which no shard holds")
        tied = architectures.ties_head(config)
        names = [name for name in entries if architectures.is_weight(name, tied)]
        kept = {name: entries[name] for name in sorted(names, key=_natural)}
        for name, entry in kept.items():
            if entry.dtype not in _FLOATS:
                raise BadInput(
                    f"{name} of {model} is stored as {entry.dtype}: quantised weights cannot be "
                    "compared; give the model that they were made from"
                )
        depends = (*files.content_files(model),)
        return cls(model, folder, config, depends, kept, digest.hexdigest(), handles)

    @property
    def weights(self) -> int:
        """Number of stored weights."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def half(self) -> str | None:
        """`bf16` or `fp16` where every weight is stored so, else None."""
        kinds = {_HALF.get(entry.dtype) for entry in self.entries.values()}
        return kinds.pop() if len(kinds) == 1 else None

    def tensor(self, name: str) -> "torch.Tensor":
        """The tensor as stored, a view of the mapped file. Read it, do not write to it."""
        file = self.entries[name].file
        handle = self._handles[file] = self._handles[file] or safe_open(file, "pt")
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)

    def let_go(self) -> None:
        """Unmap the files, once no tensor of them is used: what was read is in memory no more."""
        for file, handle in self._handles.items():
            self._handles[file] = handle if isinstance(handle, dict) else None

    def matrices(self) -> list[Matrix]:
        """Every weight matrix, in the order of the names; a tied head only as embedding."""
        kind = str(self.config.get("model_type", ""))
        found = (architectures.matrices(n, e.shape, kind) for n, e in self.entries.items())
        return [matrix for of_one in found for matrix in of_one]

    def check_vectors(self) -> None:
        """Raise BadInput, naming it, for a bias or norm with NaN or Inf."""
        self.check_finite(set(self.entries) - {matrix.tensor for matrix in self.matrices()})

    def check_finite(self, names: Iterable[str]) -> None:
        """Raise BadInput, naming it, for a tensor with NaN or Inf; one is in memory at a time."""
        for name in names:
            check_finite(self.tensor(name), f"{name} of {self.model}")

    def matrix(self, matrix: Matrix, name: str = "") -> "torch.Tensor":
        """A matrix [out, in] as stored, from the tensor `name` (by default the matrix's own).

        Raises BadInput, naming it, for NaN or Inf.
        """
        stored = matrix.take(self.tensor(name or matrix.tensor))
        check_finite(stored, f"{matrix.name} of {self.model}")
        return stored

    def identity(self) -> dict[str, Any]:
        """What tells this model from another in run.json: the hub's commit, or sizes and hashes."""
        if self.folder.parent.name == "snapshots":
            return {"model": self.model, "commit": self.folder.name}
        return {
            "model": self.model,
            "config_sha256": hashlib.sha256((self.folder / files.CONFIG).read_bytes()).hexdigest(),
            "header_sha256": self.header_sha256,
            "bytes": sum(file.stat().st_size for file in self.files),
        }


def check_finite(tensor: "torch.Tensor", label: str) -> None:
    """Raise BadInput, naming `label`, where a tensor holds NaN or Inf."""
    import torch

    for part in chunks(tensor):
        if not bool(torch.isfinite(part.float()).all()):
            raise BadInput(f"{label} holds NaN or Inf: the checkpoint is damaged or diverged")


def chunks(tensor: "torch.Tensor") -> Iterable["torch.Tensor"]:
    """Views of a few rows at a time, each at most 4 Mi entries where a row is shorter than that."""
    if tensor.ndim == 0:
        return [tensor.reshape(1)]
    rows = max(1, _CHUNK // max(1, tensor[:1].numel()))
    return tensor.split(rows)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def _open_safetensors(file: Path) -> tuple[Any, dict[str, Entry], bytes]:
    """Entries and header of a weight file. No handle yet: to open one for tensors loads torch."""
    raw = files.safetensors_header(file)
    try:
        safe_open(file, "numpy")  # finds out whether the file is whole
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} is truncated or corrupt ({error}): copy it again") from error
    header = json.loads(raw)
    header.pop("__metadata__", None)
    entries = {name: Entry(file, tuple(e["shape"]), e["dtype"]) for name, e in header.items()}
    return None, entries, raw


_PLAIN = "plain tensors by name in torch's zip format: convert to safetensors"


def _open_legacy(file: Path) -> tuple[Any, dict[str, Entry], bytes]:
    """The same of a pytorch_model.bin. Only tensors are unpickled: a file with code is refused."""
    import torch

    try:
        tensors = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # unpickling a damaged file can raise any
        raise BadInput(f"{file} is corrupt, or not {_PLAIN}") from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise BadInput(f"{file} holds something other than {_PLAIN}")
    entries = {
        name: Entry(file, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
    }
    listing = json.dumps([[n, *e.shape, e.dtype] for n, e in sorted(entries.items())])
    return tensors, entries, listing.encode()


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", name) if p]


# ── two checkpoints ───────────────────────────────────────────────────────────────────────────────


def match(a: Checkpoint, b: Checkpoint) -> dict[str, str]:
    """Name in `b` of each tensor of `a`, once both are known to be the same architecture.

    A prefix such as `model.` that only one of them has is tolerated. Raises BadInput, naming the
    setting or tensor, where configurations, vocabularies, names or shapes differ.
    """
    check_configs(a, b)
    names = _paired_names(a, b)
    for name_a, name_b in names.items():
        shape_a, shape_b = a.entries[name_a].shape, b.entries[name_b].shape
        if shape_a == shape_b:
            continue
        vocabulary = len(shape_a) == len(shape_b) == 2 and shape_a[1] == shape_b[1]
        vocabulary = vocabulary and architectures.describe_parameter(name_a).layer < 0
        raise _unlike(name_a, [*shape_a], a, [*shape_b], b, vocabulary)
    return names


def lockstep(
    base: Checkpoint, changed: Sequence[Checkpoint], matrices: Sequence[Matrix]
) -> "Iterator[tuple[Matrix, torch.Tensor, Iterator[tuple[Checkpoint, torch.Tensor]]]]":
    """Each matrix [out, in] as the base stores it, and as each changed model does, one at a time.

    Raises BadInput, naming the tensor, where checkpoints cannot be subtracted or hold NaN or Inf.
    """
    names = [match(base, other) for other in changed]
    bar = progress(matrices, "weights", unit="matrix")
    for matrix in bar:
        bar.set_postfix_str(matrix.name)
        others = (
            (other, other.matrix(matrix, name_in_other[matrix.tensor]))
            for other, name_in_other in zip(changed, names, strict=True)
        )
        yield matrix, base.matrix(matrix), others


def check_configs(a: Checkpoint, b: Checkpoint, besides: Collection[str] = ()) -> None:
    """Raise BadInput where two configurations cannot be compared, naming the setting.

    Settings in `besides` may differ.
    """
    for key in (name for name in _COMPARED if name not in besides):
        value_a, value_b = a.config.get(key), b.config.get(key)
        if value_a != value_b and None not in (value_a, value_b):
            raise _unlike(key, value_a, a, value_b, b, key == "vocab_size")
    if architectures.ties_head(a.config) != architectures.ties_head(b.config):
        raise BadInput(f"{a.model} and {b.model}: one ties its head to the embedding, one does not")


def _unlike(
    name: str, in_a: Any, a: Checkpoint, in_b: Any, b: Checkpoint, vocabulary: bool
) -> BadInput:
    what = "vocabularies differ, " if vocabulary else ""
    where = f"{name} is {in_a} in {a.model} and {in_b} in {b.model}"
    return BadInput(f"{what}{where}: compare models of one architecture")


def _paired_names(a: Checkpoint, b: Checkpoint) -> dict[str, str]:
    if set(a.entries) == set(b.entries):
        return {name: name for name in a.entries}
    short_a, short_b = _without_prefix(a), _without_prefix(b)
    if set(short_a) == set(short_b):
        return {full: short_b[short] for short, full in short_a.items()}
    only_a, only_b = sorted(set(short_a) - set(short_b)), sorted(set(short_b) - set(short_a))
    here, there, name = (a, b, short_a[only_a[0]]) if only_a else (b, a, short_b[only_b[0]])
    raise BadInput(f"{name} is in {here.model} but not in {there.model}: compare like with like")


def _without_prefix(checkpoint: Checkpoint) -> dict[str, str]:
    """Full names by their part after what stands before the blocks; unchanged where ambiguous."""
    prefixes = {
        found[1]
        for name in checkpoint.entries
        if (found := re.match(r"(.*?)(?:layers|h|blocks)\.\d+\.", name))
    }
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    short = {name.removeprefix(prefix): name for name in checkpoint.entries}
    return short if len(short) == len(checkpoint.entries) else {n: n for n in checkpoint.entries}
