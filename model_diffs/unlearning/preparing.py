"""Before the first step: the base's values that a loss compares with, and rmu's coefficient."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from model_diffs.data.texts import length_batches
from model_diffs.unlearning import Method
from model_diffs.unlearning.data import SplitBatch
from model_diffs.unlearning.evaluation import mean_norms
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import AdapterOffReference, CachedReference, Reference
from model_diffs.unlearning.settings import Settings
from model_diffs.unlearning.trainer import Trainer

# Texts of each split that norms of hidden states are measured on.
NORM_TEXTS = 32
# RMU's published coefficients are about this many times the norm of the frozen model's states.
AUTO_STEERING = 2.0


def state_splits(method: Method, settings: Settings) -> tuple[str, ...]:
    """Splits whose states under the base the loss compares with."""
    if method.name in ("cb", "cb_lat") and settings.cb_target == "orthogonal":
        return (*method.reference_states, "forget")
    return method.reference_states


def _fill(
    network: Network, reference: CachedReference, split: str, batch: SplitBatch, what: str
) -> None:
    reference.fill(network, split, batch, what)


def make_reference(
    trainer: Trainer,
    dtype: torch.dtype,
    folder: Path,
    adapter_off: Callable[[], Any] | None = None,
) -> Reference:
    """What the base says about the texts that this process will meet, from the weights as they are.

    States are kept in `dtype`, the base's own. With `adapter_off` (LoRA) nothing is kept.
    """
    layers = trainer.settings.layers
    if adapter_off is not None:
        return AdapterOffReference(trainer.network, layers, adapter_off)
    reference = CachedReference(dtype, layers, folder)
    for split in trainer.method.reference_log_probs:
        _fill_all(trainer, reference, split, "log_probs")
    for split in state_splits(trainer.method, trainer.settings):
        texts = trainer.texts(split)
        lengths = {i: len(texts[i]) for i in trainer.used(split)}
        hidden = trainer.network.model.config.get_text_config().hidden_size
        reference.reserve(split, lengths, hidden)
        _fill_all(trainer, reference, split, "states")
    return reference


def _fill_all(trainer: Trainer, reference: CachedReference, split: str, what: str) -> None:
    used, texts = trainer.used(split), trainer.texts(split)
    size = 2 * trainer.schedule.batch_size
    batches = length_batches([len(texts[i]) for i in used], size)
    # Sharded weights want all processes to pass equally often; the last batch is then repeated.
    count = torch.tensor([len(batches)], device=trainer.accelerator.device)
    most = int(trainer.accelerator.gather(count).max())
    for number in range(most):
        rows = batches[min(number, len(batches) - 1)]
        batch = trainer.batch(split, [used[row] for row in rows])
        with torch.no_grad():
            trainer.passage(_fill, reference, split, batch, what)


def state_norms(trainer: Trainer) -> dict[str, list[float]]:
    """Mean ‖h_ℓ‖ per target block on the first texts of each split."""
    found = {}
    for split in ("forget", "retain"):
        first = range(min(NORM_TEXTS, len(trainer.texts(split))))
        found[split] = mean_norms(
            trainer.passage, trainer.batch(split, first), trainer.settings.layers
        )
    return found


def automatic_steering(norms: Sequence[float]) -> tuple[float, ...]:
    """c of rmu per target block: twice the forget states' norm in the frozen model."""
    return tuple(AUTO_STEERING * norm for norm in norms)
