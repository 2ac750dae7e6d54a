"""The relearning attack: train a model on some facts, or on none, and ask it about the others.

Whoever attacks an unlearned model has some of the removed knowledge. What comes back beyond that
was in the weights all along. Fine-tuning is plain: AdamW at a constant rate, so that the state
after s steps does not depend on how many follow, and the same batches for every model and rate.
"""

import gc
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_diffs.attacks.material import LORA_RANK, SPLITS, STATES_FACTS, Attack, Material
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data import texts
from model_diffs.evaluation import scoring
from model_diffs.models import devices
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES, pick_device
from model_diffs.models.loading import load_model, load_tokenizer
from model_diffs.stats import intervals
from model_diffs.stats.intervals import Interval
from model_diffs.unlearning.data import SplitBatch, cut, parts_needed, plan_epoch, split_batch
from model_diffs.unlearning.losses import nll
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import adamw, attach_adapter

GRAD_CLIP = 1.0
ONE_THREAD = 5_000_000
"""Weights below which one thread is the fastest."""


class Measured(NamedTuple):
    """A model at one step. Intervals are over entities and over documents."""

    tokens: int
    """Trained on so far, repeats counted."""
    correct: dict[str, NDArray[np.float64]]
    """Per group, 1 for each question answered rightly."""
    accuracy: dict[str, Interval]
    nll: dict[str, Interval]
    """Per split, nats per token."""

    def means(self) -> dict[str, float]:
        """Accuracies and NLLs by their columns in relearning.csv."""
        found = {f"{group}_accuracy": float(of.mean) for group, of in self.accuracy.items()}
        return found | {f"{split}_nll": float(of.mean) for split, of in self.nll.items()}


class Trained(NamedTuple):
    """One step of the attack."""

    step: int
    loss: float
    """Nats per token of the batch."""
    grad_norm: float
    """Before clipping."""


Observe = Callable[[int, Mapping[str, float], str], None]
"""Gets a step, what was computed at it, and which training it is of."""


class Attacked(NamedTuple):
    """What one arm did at one rate."""

    arm: str
    lr: float
    measured: dict[int, Measured]
    """After each of the eval steps up to the last one trained."""
    took: bool | None
    """Whether accuracy on attacked facts reached `--until`; None for arms that do not state these
    facts, and without questions."""
    training: Sequence[Trained] = ()

    @property
    def steps(self) -> int:
        """Steps that were trained."""
        return max(self.measured)

    @property
    def end(self) -> Measured:
        """The model after the last step."""
        return self.measured[self.steps]


def name_of(arm: str, lr: float) -> str:
    """The training of an arm at a rate, as a tracker shows it: `facts/lr 15e-4` for 0.0015.

    W&B would take what stands before a dot for a group of metrics.
    """
    rate = Decimal(repr(lr)).normalize().as_tuple()
    return f"{arm}/lr {''.join(map(str, rate.digits))}e{rate.exponent}"


@contextmanager
def fitting_threads(model: str, device: str) -> Iterator[None]:
    """One thread while this is open, where the model is so small that more only wait.

    On accelerators, and for models above `ONE_THREAD` weights, torch's own number.
    """
    threads = torch.get_num_threads()
    if pick_device(device).type == "cpu" and Checkpoint.open(model).weights < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Victim:
    """A loaded model, with the texts in its own tokens."""

    def __init__(
        self, model: str, material: Material, options: Attack, observe: Observe = lambda *_: None
    ) -> None:
        """Texts of one token predict nothing and are left out; BadInput where no other is left."""
        self.observe = observe
        self.model, self.material, self.options = model, material, options
        self.device = pick_device(options.device)
        automatic = options.dtype == "auto"
        dtype = DTYPES["fp32" if automatic else options.dtype]
        # Evaluation mode throughout: with dropout, two runs of one attack would differ.
        # An adapter leaves the weights as they are, so that they are held as they are stored.
        self.adapted = {*options.arm} == {"lora"}
        trust = options.trust_remote_code
        loaded = load_model(model, self.device, dtype, trust, held=self.adapted)
        self.network = Network(loaded)
        self.tokenizer = load_tokenizer(model, options.trust_remote_code)
        longest = min(options.max_length, self.tokenizer.model_max_length)
        self.texts: dict[str, list[list[int]]] = {}
        read = {"forget": material.forget, "retain": material.retain}
        read |= {f"arm {arm}": lines for arm, lines in material.arms.items()}
        for name, lines in read.items():
            ids = texts.encode(self.tokenizer, lines, longest)
            self.texts[name] = [one for one in ids if len(one) > 1]
            if not self.texts[name]:
                raise BadInput(f"{model}: the {name} texts are single tokens: nothing to predict")
        mixed = automatic and self.device.type == "cuda"
        self.autocast = torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext()

    def batch(
        self, name: str, rows: Sequence[int], step: Sequence[int] | None = None
    ) -> SplitBatch:
        """Padded texts `rows` of `forget`, of `retain` or of an arm, in a step of texts `step`."""
        return split_batch(self.texts[name], rows, self.tokenizer.pad_token_id, self.device, step)

    @torch.no_grad()
    def nll(self, split: str) -> Interval:
        """NLL per next-token prediction, nats, with documents resampled for its interval."""
        lengths = [len(ids) for ids in self.texts[split]]
        sums = np.empty(len(lengths))
        size, most = 4 * self.options.batch_size, self.options.batch_tokens
        for rows in texts.length_batches(lengths, size, most):
            log_probs = self.network.log_probs(self.batch(split, rows))
            sums[rows] = -log_probs.cpu().double().numpy()
        predictions = [length - 1 for length in lengths]
        return intervals.ratio_interval(sums, predictions, self.options.seed)

    def measure(self, tokens: int) -> Measured:
        """Answers and NLLs as the model is now, after training on `tokens`."""
        groups, size = self.material.questions, 4 * self.options.batch_size
        seed = self.options.seed
        asked = [question for group in groups.values() for question in group]
        with self.autocast:
            given = scoring.score(self.network.model, self.tokenizer, asked, size) if asked else []
            nlls = {split: self.nll(split) for split in SPLITS}
        all_right = iter(float(answer.correct) for answer in given)
        correct = {
            group: np.fromiter(itertools.islice(all_right, len(questions)), np.float64)
            for group, questions in groups.items()
        }
        means = {
            group: intervals.entity_interval(right, self.material.entities(group), seed)
            for group, right in correct.items()
        }
        return Measured(tokens, correct, means, nlls)

    def _batches(self, arm: str) -> Iterator[list[SplitBatch]]:
        """Epoch after epoch without end; the same batches for every model and rate, in the parts
        that --batch-tokens allows."""
        lengths = [len(ids) for ids in self.texts[f"arm {arm}"]]
        size = min(self.options.batch_size, len(lengths))  # no text twice in a step
        for epoch in itertools.count():
            for step in plan_epoch(lengths, [], size, self.options.seed, epoch):
                rows = step.forget
                batch = [lengths[row] for row in rows]
                count = parts_needed([batch], self.options.batch_tokens)
                yield [self.batch(f"arm {arm}", part, rows) for part in cut(rows, count)]

    def _backward(self, parts: Sequence[SplitBatch]) -> float:
        """The mean NLL of a batch; gradients add up over its parts."""
        total = 0.0
        for part in parts:
            with self.autocast:
                loss = nll(self.network, part)
            loss.backward()
            total += loss.item()
        return total

    def _train(self, arm: str, lr: float, start: Measured) -> Attacked:
        """Train the model as it is, measure it at the eval steps, and stop once the attack took."""
        options = self.options
        weights = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = adamw(weights, lr)
        judged = arm in STATES_FACTS and "attack" in start.accuracy
        found, training, tokens, took = {0: start}, list[Trained](), 0, False
        name = name_of(arm, lr)
        batches = self._batches(arm)
        optimizer.zero_grad()
        measured, last = options.measured_steps(arm), options.steps_of(arm)
        for step in progress(range(1, last + 1), f"{arm} at {lr:g}", unit="step"):
            parts = next(batches)
            with self.network.checkpointed(self.device.type == "cuda"):
                loss = self._backward(parts)
            if not math.isfinite(loss):
                at = f"--arm {arm}, --lr {lr:g}, step {step}"
                raise BadInput(f"{self.model}: the loss is not finite at {at}: lower the rate")
            norm = torch.nn.utils.clip_grad_norm_(weights, GRAD_CLIP).item()
            optimizer.step()
            training.append(Trained(step, loss, norm))
            optimizer.zero_grad()  # gradients need not be there while the model is measured
            tokens += parts[0].step_tokens
            numbers = {"loss": loss, "grad_norm": norm, "lr": lr, "tokens": tokens}
            self.observe(step, numbers, name)
            if step in measured:
                found[step] = self.measure(tokens)
                self.observe(step, found[step].means(), name)
                took = judged and bool(found[step].accuracy["attack"].mean >= options.until)
                if took:
                    break
        return Attacked(arm, lr, found, took if judged else None, training)

    def attack(self, arm: str, lr: float, start: Measured) -> Attacked:
        """Train all weights, or the adapter of arm lora, which is taken off at the end.

        `start` is the model before it: the same for all arms and rates.
        """
        model, seed = self.network.model, self.options.seed
        torch.manual_seed(seed)
        model.requires_grad_(True)
        if arm != "lora":
            return self._train(arm, lr, start)
        adapter = attach_adapter(model, self.options.lora_rank or LORA_RANK, seed)
        found = self._train(arm, lr, start)
        adapter.unload()
        return found


def measure(model: str, material: Material, options: Attack) -> Measured:
    """A model as it is, before any attack."""
    return _Victim(model, material, options).measure(0)


def attack(
    model: str, material: Material, options: Attack, observe: Observe = lambda *_: None
) -> list[Attacked]:
    """Attack `model` with every arm at every rate, each time from its own weights.

    `observe` gets the numbers of each step at once, of what this process trains.

    Its weights are read again for each: a copy would be as large as the model. Processes share the
    arms and rates and all get all. Raises BadInput, naming arm, rate and step, where a loss is not
    finite.
    """
    unchanged = [_Victim(model, material, options, observe)]
    start, found = unchanged[0].measure(0), []
    for arm, lr in devices.share(options.attacks):
        victim = unchanged.pop() if unchanged else _Victim(model, material, options, observe)
        found.append(victim.attack(arm, lr, start))
        if victim.adapted:
            unchanged.append(victim)
        del victim  # it is released before the next one is loaded
        gc.collect()
    return devices.gather_over_processes(found)
