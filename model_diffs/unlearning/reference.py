"""What the base says about the texts, without a second model in memory.

Either computed once from the same weights before training and kept on the CPU (or, when large, in a
memory-mapped file), or, with LoRA, computed when asked for with the adapter switched off.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from model_diffs.unlearning.data import SplitBatch
from model_diffs.unlearning.losses import Loss
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.settings import Settings

# Above this many bytes of states the cache is a file: the page cache then decides what stays.
IN_MEMORY = 8 * 2**30


class CachedReference:
    """Reference values by split and text, filled before training."""

    teacher: Network
    """Of distillation, which loads it."""

    def __init__(self, dtype: torch.dtype, layers: Sequence[int], folder: Path) -> None:
        """States are kept in `dtype`, those of the blocks `layers`, a large cache in `folder`."""
        self.dtype, self.layers, self.folder = dtype, list(layers), folder
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._states: dict[tuple[str, int], Tensor] = {}

    def reserve(self, split: str, lengths: Mapping[int, int], hidden: int) -> None:
        """Make room for the states of texts of these lengths (tokens by index)."""
        shape = (sum(lengths.values()), len(self.layers), hidden)
        if prod(shape) * self.dtype.itemsize <= IN_MEMORY:
            flat = torch.empty(prod(shape), dtype=self.dtype)
        else:
            path = str(self.folder / f"reference_{split}.bin")
            flat = torch.from_file(path, shared=True, size=prod(shape), dtype=self.dtype)
        texts = flat.view(shape).split(list(lengths.values()))
        self._states |= zip([(split, index) for index in lengths], texts, strict=True)

    @torch.no_grad()
    def fill(self, network: Network, split: str, batch: SplitBatch, what: str) -> None:
        """Compute and keep `log_probs` or `states` of a batch."""
        keys = [(split, index) for index in batch.indices]
        if what == "log_probs":
            self._sums |= zip(keys, network.log_probs(batch).cpu(), strict=True)
            return
        found = network.states(batch, self.layers)
        stacked = torch.stack([found[layer] for layer in self.layers], 2).to(self.dtype).cpu()
        for key, row in zip(keys, stacked, strict=True):
            self._states[key].copy_(row[: len(self._states[key])])

    def log_probs(self, split: str, batch: SplitBatch) -> Tensor:
        """Of each text of a batch, as `Network.log_probs` gives them, without gradient."""
        sums = torch.stack([self._sums[split, index] for index in batch.indices])
        return sums.to(batch.input_ids.device)

    def states(self, split: str, batch: SplitBatch, layer: int) -> Tensor:
        """Output of block `layer`, `[texts, positions, hidden]`, zero at padding."""
        kept = [self._states[split, i][:, self.layers.index(layer)] for i in batch.indices]
        padded = kept[0].new_zeros((*batch.input_ids.shape, kept[0].shape[-1]))
        for row, states in zip(padded, kept, strict=True):
            row[: len(states)] = states
        return padded.to(batch.input_ids.device)


class AdapterOffReference:
    """The base is the model with its adapter switched off: nothing is kept, each call is a pass."""

    teacher: Network

    def __init__(
        self, network: Network, layers: Sequence[int], adapter_off: Callable[[], Any]
    ) -> None:
        """`adapter_off` gives the context in which the model is the base."""
        self.network, self.layers, self.adapter_off = network, list(layers), adapter_off
        self._last: tuple[SplitBatch | None, dict[int, Tensor]] = (None, {})

    @torch.no_grad()
    def log_probs(self, split: str, batch: SplitBatch) -> Tensor:
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


def state_splits(loss: Loss, settings: Settings) -> tuple[str, ...]:
    """Splits whose states under the base the loss compares with."""
    if loss.name in ("cb", "cb_lat") and settings.cb_target == "orthogonal":
        return (*loss.reference_states, "forget")
    return loss.reference_states
