"""How large a model and what it is loaded with are, from headers or a configuration alone.

Nothing is loaded: weight files say their tensors in their headers; where there are none yet, the
architecture is laid out on torch's device `meta`, which holds no numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core import memory, naming
from model_diffs.core.errors import BadInput
from model_diffs.core.memory import Need
from model_diffs.models import architectures, configuration, files
from model_diffs.models.architectures import OUTSIDE, Matrix
from model_diffs.models.checkpoints import Checkpoint

BYTES = {"auto": 4, "fp32": 4, "fp16": 2, "bf16": 2}
"""Of one number, by `--dtype`."""
_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "float64": 8, "float32": 4}
TOKEN_BYTES = 4
"""Of text that a token stands for, about."""


class Tensor(NamedTuple):
    """A stored tensor."""

    shape: tuple[int, ...]
    itemsize: int

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Shape:
    """The sizes of one model."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(one.size for one in self.tensors.values())

    @property
    def itemsize(self) -> int:
        """Bytes of a stored weight: that of most of them."""
        sizes = dict.fromkeys((2, 4, 8), 0)
        for one in self.tensors.values():
            sizes[one.itemsize] += one.size
        return max(sizes, key=lambda kind: sizes[kind])

    @cached_property
    def matrices(self) -> list[Matrix]:
        """Every weight matrix."""
        kind = str(self.config.get("model_type", ""))
        found = (architectures.matrices(n, t.shape, kind) for n, t in self.tensors.items())
        return [matrix for of_one in found for matrix in of_one]

    @property
    def largest(self) -> int:
        """Entries of the largest matrix."""
        return max(prod(matrix.shape) for matrix in self.matrices)

    @property
    def hidden(self) -> int:
        """Width of a hidden state."""
        return max(m.shape[1] for m in self.matrices if m.component == "embed")

    @property
    def vocabulary(self) -> int:
        return max(m.shape[0] for m in self.matrices if m.component == "embed")

    @property
    def blocks(self) -> int:
        return max(matrix.layer for matrix in self.matrices) + 1

    @property
    def inner(self) -> int:
        """Width inside a block's MLP; of all experts that a token goes to."""
        widths = [
            max(m.shape) for m in self.matrices if m.component in architectures.MLP_COMPONENTS
        ]
        return max(widths) * int(self.config.get("num_experts_per_tok") or 1)

    @property
    def heads(self) -> int:
        found = (self.config.get(name) for name in ("num_attention_heads", "n_head"))
        return int(next(filter(None, found), 1))

    def block_weights(self, layer: int) -> int:
        """Weights of the matrices of a block; `OUTSIDE`: of those outside blocks."""
        return sum(prod(m.shape) for m in self.matrices if m.layer == layer)

    @property
    def outside(self) -> int:
        """Weights outside blocks: embedding and head."""
        return self.block_weights(OUTSIDE)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def _from_headers(folder: Path) -> Shape:
    stored = Checkpoint.open(str(folder))
    tensors = {
        name: Tensor(one.shape, _STORED.get(one.dtype, 2)) for name, one in stored.entries.items()
    }
    return Shape(stored.config, tensors)


def _from_configuration(folder: Path) -> Shape:
    """Laid out on `meta`. BadInput for an architecture that transformers does not know."""
    read = files.read_config(folder)
    return _laid_out(str(folder), (folder / files.CONFIG).read_text(encoding="utf-8"), read)


_known: dict[str, Shape] = {}
"""Of each configuration, by its text: models that are compared have the same."""


def _laid_out(folder: str, text: str, read: Mapping[str, Any]) -> Shape:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if text in _known:
        return _known[text]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a configuration can be wrong in any way
        raise BadInput(f"{folder}: its configuration describes no known model") from error
    stored = str(read.get("dtype") or read.get("torch_dtype") or "float32")
    itemsize = _STORED.get(stored, 2)
    tensors = {name: Tensor((*p.shape,), itemsize) for name, p in model.named_parameters()}
    return _known.setdefault(text, Shape(read, tensors))


def _read(model: str) -> Shape | None:
    local = naming.is_local(model)
    folder = Path(model).expanduser() if local else files.cached_snapshot(model)
    if folder is None or not (folder / files.CONFIG).is_file():
        return None
    try:
        files.weight_files(folder)
    except BadInput:
        return _from_configuration(folder)
    return _from_headers(folder)


def of(models: Sequence[str]) -> Shape | None:
    """The largest of these models; those without a configuration on this disk are taken to be of
    the same size. None where no model has one. Raises BadInput for a damaged one."""
    found = [shape for model in dict.fromkeys(models) if (shape := _read(model))]
    return max(found, key=lambda shape: shape.weights, default=None)


# ── what models take ──────────────────────────────────────────────────────────────────────────────


def batch_tokens(shape: Shape, texts: Sequence[str], batch_size: int, max_length: int) -> int:
    """Tokens of a padded batch, about: from the longest line of these files, where there is one."""
    longest = configuration.positions(shape.config) or max_length
    lengths = [
        max((len(line) for line in Path(path).read_bytes().split(b"\n")), default=0)
        for path in texts
        if Path(path).is_file()
    ]
    of_texts = -(-max(lengths) // TOKEN_BYTES) if lengths else max_length
    return batch_size * max(1, min(max_length, longest, of_texts))


def samples(texts: Sequence[str], most: int) -> int:
    """Lines of the longest of these files, at most `most` (0 = all); `most` where none is there."""
    counts = [Path(path).read_bytes().count(b"\n") for path in texts if Path(path).is_file()]
    longest = max(counts) if counts else most
    return min(most, longest) if most else longest


def compute_bytes(options: Any) -> int:
    """Bytes of a number in a pass with these `--dtype` and `--device`."""
    if options.dtype == "auto" and (memory.own_memory(options) or options.device == "mps"):
        return 2
    return BYTES[options.dtype]


def mixed(options: Any) -> bool:
    """Whether training computes in bf16 with fp32 weights: `--dtype auto` on a CUDA device."""
    return options.dtype == "auto" and memory.own_memory(options)


def recomputes(options: Any) -> bool:
    """Whether blocks are recomputed in the backward pass: on CUDA devices, unless told."""
    wanted = getattr(options, "gradient_checkpointing", None)
    return memory.own_memory(options) if wanted is None else bool(wanted)


def together(
    shape: Shape, itemsize: int, count: int, extra: float, wanted: str, options: Any
) -> bool:
    """Whether `count` models will run side by side, as `loading.fit_together` decides."""
    if wanted != "auto" or count == 1:
        return wanted != "no" or count == 1
    return count * shape.weights * itemsize + extra < memory.free(options) / 2


def loaded(
    shape: Shape, options: Any, itemsize: int, count: int = 1, reads_head: bool = True
) -> Need:
    """`count` models on the device with `itemsize` bytes a weight, loaded one by one.

    In main memory, weights in the dtype that they are stored in are read from the mapped file when
    they are used: of the embedding few rows, of the head nothing where it is not run.
    """
    weights = shape.weights
    if not memory.own_memory(options) and itemsize == shape.itemsize:
        weights -= shape.outside - (shape.vocabulary * shape.hidden if reads_head else 0)
    return Need(device=count * weights * itemsize, passing=shape.weights * itemsize)


def inside_block(shape: Shape, tokens: int, itemsize: int) -> float:
    """Bytes of what a block holds at once in a pass that keeps nothing."""
    return tokens * (2 * shape.inner + 4 * shape.hidden) * itemsize
