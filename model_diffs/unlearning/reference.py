"""What the base says about the texts, without a second model in memory.

Either computed once from the same weights before training and kept on the CPU (or, when large, in a
memory-mapped file), or, with LoRA, computed when asked for with the adapter switched off.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model_diffs.unlearning.data import SplitBatch
from model_diffs.unlearning.network import LogProbs, Network

# Above this many bytes of states the cache is a file: the page cache then decides what stays.
IN_MEMORY = 8 * 2**30


class Reference(Protocol):
    """The base's log-probabilities and hidden states of the texts of a batch."""

    def log_probs(self, split: str, batch: SplitBatch) -> LogProbs:
        """Of each text, as `Network.log_probs` gives them, without gradient."""

    def states(self, split: str, batch: SplitBatch, layer: int) -> Tensor:
        """Output of block `layer`, `[texts, positions, hidden]`, zero at padding."""


class CachedReference:
    """Reference values by split and text, filled before training."""

    def __init__(self, dtype: torch.dtype, layers: Sequence[int], folder: Path) -> None:
        """States are kept in `dtype`, those of the blocks `layers`, a large cache in `folder`."""
        self.dtype = dtype
        self.layers = list(layers)
        self.folder = folder
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._states: dict[str, Tensor] = {}
        self._offsets: dict[str, dict[int, int]] = {}

    def reserve(self, split: str, lengths: dict[int, int], hidden: int) -> None:
        """Make room for the states of texts of these lengths (tokens by index)."""
        offsets, total = {}, 0
        for index, length in lengths.items():
            offsets[index] = total
            total += length
        shape = (total, len(self.layers), hidden)
        size = shape[0] * shape[1] * shape[2]
        if size * self.dtype.itemsize <= IN_MEMORY:
            flat = torch.empty(size, dtype=self.dtype)
        else:
            path = str(self.folder / f"reference_{split}.bin")
            flat = torch.from_file(path, shared=True, size=size, dtype=self.dtype)
        self._offsets[split], self._states[split] = offsets, flat.view(shape)

    @torch.no_grad()
    def fill(self, network: Network, split: str, batch: SplitBatch, what: str) -> None:
        """Compute and keep `log_probs` or `states` of a batch."""
        if what == "log_probs":
            sums = network.log_probs(batch).sums.cpu()
            self._sums.setdefault(split, {}).update(zip(batch.indices, sums, strict=True))
            return
        found = network.states(batch, self.layers)
        stacked = torch.stack([found[layer] for layer in self.layers], 2).to(self.dtype).cpu()
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            start = self._offsets[split][index]
            self._states[split][start : start + length] = stacked[row, :length]

    def log_probs(self, split: str, batch: SplitBatch) -> LogProbs:
        sums = torch.stack([self._sums[split][i] for i in batch.indices])
        counts = batch.attention_mask.sum(1) - 1
        return LogProbs(sums.to(batch.input_ids.device), counts)

    def states(self, split: str, batch: SplitBatch, layer: int) -> Tensor:
        kept = self._states[split]
        column = self.layers.index(layer)
        padded = kept.new_zeros((*batch.input_ids.shape, kept.shape[-1]))
        for row, (index, length) in enumerate(
            zip(batch.indices, batch.attention_mask.sum(1).tolist(), strict=True)
        ):
            start = self._offsets[split][index]
            padded[row, :length] = kept[start : start + length, column]
        return padded.to(batch.input_ids.device)


class AdapterOffReference:
    """The base is the model with its adapter switched off: nothing is kept, each ask is a pass."""

    def __init__(
        self, network: Network, layers: Sequence[int], adapter_off: Callable[[], Any]
    ) -> None:
        """`adapter_off` gives the context in which the model is the base."""
        self.network = network
        self.layers = list(layers)
        self.adapter_off = adapter_off
        self._last: tuple[SplitBatch | None, dict[int, Tensor]] = (None, {})

    @torch.no_grad()
    def log_probs(self, split: str, batch: SplitBatch) -> LogProbs:
        with self.adapter_off():
            return self.network.log_probs(batch)

    @torch.no_grad()
    def states(self, split: str, batch: SplitBatch, layer: int) -> Tensor:
        # The blocks of a batch are asked for one after the other; one pass serves them all.
        if self._last[0] is not batch:
            with self.adapter_off():
                self._last = (batch, self.network.states(batch, self.layers))
        return self._last[1][layer]
