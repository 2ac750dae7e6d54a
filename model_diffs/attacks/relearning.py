"""The relearning attack: train a copy of a model on some facts, ask it about the others.

Whoever attacks an unlearned model has some of the removed knowledge. What comes back beyond that
was in the weights all along. Fine-tuning is plain: AdamW at a constant rate, so that the state
after s steps does not depend on how many follow, and the same batches for every model and rate.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_diffs.attacks.material import SPLITS, Attack, Material
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data import texts
from model_diffs.evaluation import scoring
from model_diffs.models.devices import DTYPES, pick_device
from model_diffs.models.loading import load_model, load_tokenizer
from model_diffs.stats import intervals
from model_diffs.stats.intervals import Interval
from model_diffs.unlearning import adapters
from model_diffs.unlearning.data import plan_epoch, split_batch
from model_diffs.unlearning.losses import nll
from model_diffs.unlearning.network import Network

GRAD_CLIP = 1.0


class Measured(NamedTuple):
    """A model at one step. Intervals are over questions and over documents."""

    tokens: int
    """Trained on so far, repeats counted."""
    correct: dict[str, NDArray[np.float64]]
    """Per group, 1 for each question answered rightly."""
    accuracy: dict[str, Interval]
    nll: dict[str, Interval]
    """Per split, nats per token."""


class _Victim(NamedTuple):
    """A loaded model, with the texts in its own tokens."""

    network: Network
    tokenizer: Any
    texts: dict[str, list[list[int]]]
    """Token ids by `attack`, `forget` and `retain`."""
    device: torch.device
    autocast: AbstractContextManager[Any]


def _load(model: str, material: Material, options: Attack) -> _Victim:
    """Texts of one token predict nothing and are left out; BadInput where no other is left."""
    device = pick_device(options.device)
    automatic = options.dtype == "auto"
    dtype = DTYPES["fp32" if automatic else options.dtype]
    # Evaluation mode throughout: with dropout, two runs of one attack would differ.
    network = Network(load_model(model, device, dtype, options.trust_remote_code))
    tokenizer = load_tokenizer(model, options.trust_remote_code)
    longest = min(options.max_length, network.positions or options.max_length)
    found = {}
    for name in ("attack", *SPLITS):
        ids = texts.encode(tokenizer, getattr(material, name), longest)
        found[name] = [one for one in ids if len(one) > 1]
        if not found[name]:
            raise BadInput(f"{model}: the {name} texts are single tokens: nothing to predict")
    mixed = automatic and device.type == "cuda"
    autocast = torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext()
    return _Victim(network, tokenizer, found, device, autocast)


@torch.no_grad()
def _document_nll(victim: _Victim, split: str, batch_size: int, seed: int) -> Interval:
    """NLL per next-token prediction, nats, with documents resampled for its interval."""
    lengths = [len(ids) for ids in victim.texts[split]]
    sums = np.empty(len(lengths))
    for rows in texts.length_batches(lengths, batch_size):
        pad_id = victim.tokenizer.pad_token_id
        batch = split_batch(victim.texts[split], rows, pad_id, victim.device)
        sums[rows] = -victim.network.log_probs(batch).sums.cpu().double().numpy()
    return intervals.ratio_interval(sums, [length - 1 for length in lengths], seed)


def _measure(victim: _Victim, material: Material, options: Attack, tokens: int) -> Measured:
    asked = [question for group in material.questions.values() for question in group]
    size, seed = 4 * options.batch_size, options.seed
    with victim.autocast:
        model = victim.network.model
        given = scoring.score(model, victim.tokenizer, asked, size) if asked else []
        measured = {split: _document_nll(victim, split, size, seed) for split in SPLITS}
    right = iter(float(answer.correct) for answer in given)
    correct = {
        group: np.array(list(itertools.islice(right, len(questions))))
        for group, questions in material.questions.items()
    }
    accuracy = {group: intervals.mean_interval(values, seed) for group, values in correct.items()}
    return Measured(tokens, correct, accuracy, measured)


def measure(model: str, material: Material, options: Attack) -> Measured:
    """A model as it is, before any attack."""
    return _measure(_load(model, material, options), material, options, 0)


def _batches(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of texts, epoch after epoch without end; the same for every model and rate."""
    for epoch in itertools.count():
        for step in plan_epoch(lengths, [], batch_size, seed, epoch):
            yield step.forget


def attack(
    model: str, material: Material, lr: float, options: Attack, start: Measured
) -> dict[int, Measured]:
    """Fine-tune a copy of `model` at rate `lr`; what was measured after each of the eval steps.

    `start` is what `measure` found: step 0 is the same for all rates. Raises BadInput, naming the
    step, where the loss is not finite.
    """
    torch.manual_seed(options.seed)
    victim = _load(model, material, options)
    network, trained_on = victim.network, victim.texts["attack"]
    adapters.attach(network.model, options.lora_rank, options.seed)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.0)
    batches = _batches([len(ids) for ids in trained_on], options.batch_size, options.seed)
    found, tokens = {0: start}, 0
    for step in progress(range(1, options.steps + 1), f"attack at {lr:g}", unit="step"):
        pad_id = victim.tokenizer.pad_token_id
        batch = split_batch(trained_on, next(batches), pad_id, victim.device)
        with victim.autocast:
            loss = nll(network, batch)
        if not math.isfinite(loss.item()):
            raise BadInput(f"{model}: the loss is not finite at --lr {lr:g}, step {step}: lower it")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, GRAD_CLIP)
        optimizer.step()
        tokens += batch.totals.tokens
        if step in options.measured_steps:
            found[step] = _measure(victim, material, options, tokens)
    return found
