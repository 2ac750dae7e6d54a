"""What is measured of a model before and after: NLL on held-out texts, accuracy on questions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from model_diffs.data.questions import Question
from model_diffs.data.texts import length_batches
from model_diffs.evaluation import scoring
from model_diffs.unlearning.data import SplitBatch, Tokens, split_batch
from model_diffs.unlearning.network import Network, at_least_fp32


def nlls(
    passage: nn.Module,
    splits: Mapping[str, Tokens],
    pad_id: int,
    batch_size: int,
    accelerator: Accelerator | None = None,
    most: int = 0,
    kept: dict[str, list[float]] | None = None,
) -> dict[str, float | None]:
    """NLL per token, nats, on the held-out texts of each split; gap = forget_NLL − retain_NLL.

    `passage` is a Network, or what wraps one. With an accelerator its processes share the texts.
    A pass takes at most `most` tokens (0: any number). None where no text was held out and for what
    is not finite. `kept` gets the NLL per token of each text.
    """
    found = {}
    for name, split in splits.items():
        texts = split.held_out
        sums = _text_nlls(passage, texts, pad_id, batch_size, accelerator, most)
        predictions = [len(ids) - 1 for ids in texts]
        found[f"{name}_NLL"] = math.fsum(sums) / sum(predictions) if texts else math.nan
        if kept is not None:
            kept[name] = [s / max(n, 1) for s, n in zip(sums, predictions, strict=True)]
    found["gap"] = found["forget_NLL"] - found["retain_NLL"]
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


@torch.no_grad()
def _text_nlls(
    passage: nn.Module,
    texts: Sequence[list[int]],
    pad_id: int,
    batch_size: int,
    accelerator: Accelerator | None,
    most: int,
) -> list[float]:
    """Summed NLL of each text, on every process."""
    if not texts:
        return []
    device = accelerator.device if accelerator else next(passage.parameters()).device
    rank, processes = 0, 1
    if accelerator:
        rank, processes = accelerator.process_index, accelerator.num_processes
    batches = length_batches([len(ids) for ids in texts], batch_size, most)
    found: dict[int, float] = {}
    # Sharded weights need equally many passes on all processes.
    for start in range(0, len(batches), processes):
        mine = start + rank
        rows = batches[min(mine, len(batches) - 1)]
        log_probs = passage(Network.log_probs, split_batch(texts, rows, pad_id, device))
        if mine < len(batches):
            found |= dict(zip(rows, (-log_probs).cpu().double().tolist(), strict=True))
    shares = gather_object([found]) if accelerator else [found]
    whole = {row: value for one in shares for row, value in one.items()}
    return [whole[row] for row in range(len(texts))]


@torch.no_grad()
def norms_after(
    passage: nn.Module, batch: SplitBatch, layers: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """After each of the blocks `layers`: norms of states `[texts, positions]`, and which of them
    are of real tokens."""
    states, mask = passage(Network.states, batch, layers), batch.attention_mask.bool()
    return [(at_least_fp32(one).norm(dim=-1), mask) for one in states.values()]


def accuracies(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question]
) -> dict[str, float | None]:
    """Accuracy on four-choice questions by domain and fold, with the ends of its interval."""
    found: dict[str, float | None] = {}
    for one in scoring.accuracies(scoring.score(model, tokenizer, questions)):
        name = f"{one.name}_accuracy"
        found |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    return found


def in_words(measured: Mapping[str, float | None]) -> str:
    """NLLs and accuracies in one line; without intervals and forms of questions, which are many."""
    shown = {
        name.removesuffix("_accuracy"): "–" if value is None else f"{value:.3f}"
        for name, value in measured.items()
        if not name.endswith(("_low", "_high", "_seen_accuracy", "_unseen_accuracy"))
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())
