"""What the base says about the texts, without a second model in memory.

Either computed once from the same weights before training and kept on the CPU (or, when large, in a
memory-mapped file), or, with LoRA, computed when asked for with the adapter switched off.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from model_diffs.data.texts import length_batches
from model_diffs.unlearning.data import SplitBatch
from model_diffs.unlearning.network import LogProbs, Network

if TYPE_CHECKING:
    from model_diffs.unlearning.losses import Loss
    from model_diffs.unlearning.settings import Settings
    from model_diffs.unlearning.trainer import Trainer

# Above this many bytes of states the cache is a file: the page cache then decides what stays.
IN_MEMORY = 8 * 2**30


class CachedReference:
    """Reference values by split and text, filled before training."""

    def __init__(self, dtype: torch.dtype, layers: Sequence[int], folder: Path) -> None:
        """States are kept in `dtype`, those of the blocks `layers`, a large cache in `folder`."""
        self.dtype, self.layers, self.folder = dtype, list(layers), folder
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._states: dict[str, Tensor] = {}
        self._offsets: dict[tuple[str, int], int] = {}

    def reserve(self, split: str, lengths: dict[int, int], hidden: int) -> None:
        """Make room for the states of texts of these lengths (tokens by index)."""
        total = 0
        for index, length in lengths.items():
            self._offsets[split, index] = total
            total += length
        shape = (total, len(self.layers), hidden)
        if prod(shape) * self.dtype.itemsize <= IN_MEMORY:
            flat = torch.empty(prod(shape), dtype=self.dtype)
        else:
            path = str(self.folder / f"reference_{split}.bin")
            flat = torch.from_file(path, shared=True, size=prod(shape), dtype=self.dtype)
        self._states[split] = flat.view(shape)

    @torch.no_grad()
    def fill(self, network: Network, split: str, batch: SplitBatch, what: str) -> None:
        """Compute and keep `log_probs` or `states` of a batch."""
        if what == "log_probs":
            keys = [(split, index) for index in batch.indices]
            self._sums |= zip(keys, network.log_probs(batch).sums.cpu(), strict=True)
            return
        found = network.states(batch, self.layers)
        stacked = torch.stack([found[layer] for layer in self.layers], 2).to(self.dtype).cpu()
        for kept, row in zip(self._kept(split, batch), stacked, strict=True):
            kept.copy_(row[: len(kept)])

    def _kept(self, split: str, batch: SplitBatch) -> Iterator[Tensor]:
        """The kept states of each text of a batch, `[tokens, layers, hidden]`."""
        for index, length in zip(batch.indices, batch.attention_mask.sum(1).tolist(), strict=True):
            start = self._offsets[split, index]
            yield self._states[split][start : start + length]

    def log_probs(self, split: str, batch: SplitBatch) -> LogProbs:
        """Of each text of a batch, as `Network.log_probs` gives them, without gradient."""
        sums = torch.stack([self._sums[split, index] for index in batch.indices])
        return LogProbs(sums.to(batch.input_ids.device), batch.attention_mask.sum(1) - 1)

    def states(self, split: str, batch: SplitBatch, layer: int) -> Tensor:
        """Output of block `layer`, `[texts, positions, hidden]`, zero at padding."""
        kept = self._states[split]
        padded = kept.new_zeros((*batch.input_ids.shape, kept.shape[-1]))
        for row, states in zip(padded, self._kept(split, batch), strict=True):
            row[: len(states)] = states[:, self.layers.index(layer)]
        return padded.to(batch.input_ids.device)


class AdapterOffReference:
    """The base is the model with its adapter switched off: nothing is kept, each call is a pass."""

    def __init__(
        self, network: Network, layers: Sequence[int], adapter_off: Callable[[], Any]
    ) -> None:
        """`adapter_off` gives the context in which the model is the base."""
        self.network, self.layers, self.adapter_off = network, list(layers), adapter_off
        self._last: tuple[SplitBatch | None, dict[int, Tensor]] = (None, {})

    @torch.no_grad()
    def log_probs(self, split: str, batch: SplitBatch) -> LogProbs:
        with self.adapter_off():
            return self.network.log_probs(batch)

    @torch.no_grad()
    def states(self, split: str, batch: SplitBatch, layer: int) -> Tensor:
        # A loss asks for one block after the other; one pass serves them all.
        if self._last[0] is not batch:
            with self.adapter_off():
                self._last = (batch, self.network.states(batch, self.layers))
        return self._last[1][layer]


Reference: TypeAlias = CachedReference | AdapterOffReference


def state_splits(loss: "Loss", settings: "Settings") -> tuple[str, ...]:
    """Splits whose states under the base the loss compares with."""
    if loss.name in ("cb", "cb_lat") and settings.cb_target == "orthogonal":
        return (*loss.reference_states, "forget")
    return loss.reference_states


def make_reference(trainer: "Trainer", dtype: torch.dtype, folder: Path) -> Reference:
    """What the base says about the texts that this process will meet, from the weights as they are.

    States are kept in `dtype`, the base's own. With an adapter (LoRA) nothing is kept.
    """
    layers = trainer.settings.layers
    if trainer.adapter is not None:
        return AdapterOffReference(trainer.network, layers, trainer.adapter.disable_adapter)
    reference = CachedReference(dtype, layers, folder)
    for split in trainer.loss.reference_log_probs:
        _fill_all(trainer, reference, split, "log_probs")
    for split in state_splits(trainer.loss, trainer.settings):
        lengths = {i: len(trainer.texts(split)[i]) for i in trainer.used(split)}
        hidden = trainer.network.model.config.get_text_config().hidden_size
        reference.reserve(split, lengths, hidden)
        _fill_all(trainer, reference, split, "states")
    return reference


@torch.no_grad()
def _fill_all(trainer: "Trainer", reference: CachedReference, split: str, what: str) -> None:
    used, texts = trainer.used(split), trainer.texts(split)
    batches = length_batches([len(texts[i]) for i in used], 2 * trainer.options.batch_size)
    # Sharded weights need equally many passes on all processes: the last batch is then repeated.
    count = torch.tensor([len(batches)], device=trainer.accelerator.device)
    for number in range(int(trainer.accelerator.gather(count).max())):
        rows = batches[min(number, len(batches) - 1)]
        batch = trainer.batch(split, [used[row] for row in rows])
        trainer.passage(reference.fill, split, batch, what)
