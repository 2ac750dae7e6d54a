"""The relearning attack: train a copy of a model on some facts, ask it about the others.

Whoever attacks an unlearned model has some of the removed knowledge. What comes back beyond that
was in the weights all along. Fine-tuning is plain: AdamW at a constant rate, so that the state
after s steps does not depend on how many follow, and the same batches for every model and rate.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

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
from model_diffs.unlearning.data import SplitBatch, plan_epoch, split_batch
from model_diffs.unlearning.losses import nll
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import attach_adapter

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


class _Victim:
    """A loaded model, with the texts in its own tokens."""

    def __init__(self, model: str, material: Material, options: Attack) -> None:
        """Texts of one token predict nothing and are left out; BadInput where no other is left."""
        self.material, self.options = material, options
        self.device = pick_device(options.device)
        automatic = options.dtype == "auto"
        dtype = DTYPES["fp32" if automatic else options.dtype]
        # Evaluation mode throughout: with dropout, two runs of one attack would differ.
        self.network = Network(load_model(model, self.device, dtype, options.trust_remote_code))
        self.tokenizer = load_tokenizer(model, options.trust_remote_code)
        longest = min(options.max_length, self.tokenizer.model_max_length)
        self.texts: dict[str, list[list[int]]] = {}
        for name in ("attack", *SPLITS):
            ids = texts.encode(self.tokenizer, getattr(material, name), longest)
            self.texts[name] = [one for one in ids if len(one) > 1]
            if not self.texts[name]:
                raise BadInput(f"{model}: the {name} texts are single tokens: nothing to predict")
        mixed = automatic and self.device.type == "cuda"
        self.autocast = torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext()

    def batch(self, name: str, rows: Sequence[int]) -> SplitBatch:
        """Padded texts `rows` of `attack`, `forget` or `retain`."""
        return split_batch(self.texts[name], rows, self.tokenizer.pad_token_id, self.device)

    @torch.no_grad()
    def nll(self, split: str) -> Interval:
        """NLL per next-token prediction, nats, with documents resampled for its interval."""
        lengths = [len(ids) for ids in self.texts[split]]
        sums = np.empty(len(lengths))
        for rows in texts.length_batches(lengths, 4 * self.options.batch_size):
            log_probs = self.network.log_probs(self.batch(split, rows))
            sums[rows] = -log_probs.cpu().double().numpy()
        predictions = [length - 1 for length in lengths]
        return intervals.ratio_interval(sums, predictions, self.options.seed)

    def measure(self, tokens: int) -> Measured:
        """Answers and NLLs as the model is now, after training on `tokens`."""
        groups, size = self.material.questions, 4 * self.options.batch_size
        asked = [question for group in groups.values() for question in group]
        with self.autocast:
            given = scoring.score(self.network.model, self.tokenizer, asked, size) if asked else []
            nlls = {split: self.nll(split) for split in SPLITS}
        right = iter(float(answer.correct) for answer in given)
        correct = {
            group: np.fromiter(itertools.islice(right, len(questions)), np.float64)
            for group, questions in groups.items()
        }
        means = {g: intervals.mean_interval(c, self.options.seed) for g, c in correct.items()}
        return Measured(tokens, correct, means, nlls)


def measure(model: str, material: Material, options: Attack) -> Measured:
    """A model as it is, before any attack."""
    return _Victim(model, material, options).measure(0)


def attack(
    model: str, material: Material, lr: float, options: Attack, start: Measured
) -> dict[int, Measured]:
    """Fine-tune a copy of `model` at rate `lr`; what was measured after each of the eval steps.

    `start` is what `measure` found: step 0 is the same for all rates. Raises BadInput, naming the
    step, where the loss is not finite.
    """
    torch.manual_seed(options.seed)
    victim = _Victim(model, material, options)
    attach_adapter(victim.network.model, options.lora_rank, options.seed)
    weights = [p for p in victim.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.0)
    # Epoch after epoch without end; the same batches for every model and rate.
    lengths = [len(ids) for ids in victim.texts["attack"]]
    size = min(options.batch_size, len(lengths))  # no text twice in a step
    batches = itertools.chain.from_iterable(
        plan_epoch(lengths, [], size, options.seed, epoch) for epoch in itertools.count()
    )
    found, tokens = {0: start}, 0
    for step in progress(range(1, options.steps + 1), f"attack at {lr:g}", unit="step"):
        batch = victim.batch("attack", next(batches).forget)
        with victim.autocast:
            loss = nll(victim.network, batch)
        if not math.isfinite(loss.item()):
            raise BadInput(f"{model}: the loss is not finite at --lr {lr:g}, step {step}: lower it")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, GRAD_CLIP)
        optimizer.step()
        tokens += batch.step_tokens
        if step in options.measured_steps:
            found[step] = victim.measure(tokens)
    return found
