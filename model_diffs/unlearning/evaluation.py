"""What is measured before and after: NLL on held-out texts, norms of hidden states."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from model_diffs.data.texts import length_batches
from model_diffs.unlearning.data import SplitBatch, split_batch
from model_diffs.unlearning.network import Network, at_least_fp32


class HeldOut(NamedTuple):
    """NLL per token, nats, on texts held out of training; None where none were."""

    forget_NLL: float | None
    retain_NLL: float | None

    @property
    def gap(self) -> float | None:
        """forget_NLL − retain_NLL."""
        if self.forget_NLL is None or self.retain_NLL is None:
            return None
        return self.forget_NLL - self.retain_NLL

    def facts(self) -> dict[str, float | None]:
        """For the records, with gap = forget_NLL − retain_NLL. Infinite values become None."""
        values = {**self._asdict(), "gap": self.gap}
        return {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}


def _sum_of_nll(network: Network, batch: SplitBatch) -> Tensor:
    return -network.log_probs(batch).sums.double().sum()


@torch.no_grad()
def mean_nll(
    passage: nn.Module,
    accelerator: Accelerator,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    pad_id: int,
) -> float | None:
    """NLL per next-token prediction over `texts`, shared among processes; None without texts."""
    if not texts:
        return None
    batches = length_batches([len(ids) for ids in texts], batch_size)
    total = torch.zeros((), dtype=torch.float64)
    # Sharded weights need equally many passes on all processes.
    for start in range(0, len(batches), accelerator.num_processes):
        mine = start + accelerator.process_index
        batch = split_batch(texts, batches[min(mine, len(batches) - 1)], pad_id, accelerator.device)
        value = passage(_sum_of_nll, batch).cpu()
        if mine < len(batches):
            total += value
    # MPS has no fp64; fp32 is precise enough for a sum of at most a few million nats.
    moved = total.float() if accelerator.device.type == "mps" else total
    summed = accelerator.reduce(moved.to(accelerator.device), "sum")
    return float(summed) / sum(len(ids) - 1 for ids in texts)


@torch.no_grad()
def mean_norms(network: Network, batch: SplitBatch, layers: Sequence[int]) -> list[float]:
    """Mean ‖h_ℓ‖₂ over the tokens of a batch, one number per block of `layers`."""
    mask, found = batch.attention_mask.bool(), network.states(batch, layers)
    return [float(at_least_fp32(found[one])[mask].norm(dim=-1).mean()) for one in layers]
