"""The training loop, the same for every method."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from model_diffs.activations.sinks import SINK, ratio_to_others
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.unlearning import checkpointing, data
from model_diffs.unlearning.checkpointing import StepLog
from model_diffs.unlearning.data import Pair, SplitBatch, Tokens
from model_diffs.unlearning.interventions import Intervention, Search
from model_diffs.unlearning.losses import Loss, Terms
from model_diffs.unlearning.measuring import nlls, norms_after
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import make_optimizers, make_schedule
from model_diffs.unlearning.reference import (
    AdapterOffReference,
    CachedReference,
    Reference,
    state_splits,
)
from model_diffs.unlearning.settings import Settings, Training

# Texts of each split that norms of hidden states are measured on.
NORM_TEXTS = 32


@dataclass
class Trainer:
    """One method on one model with one set of texts."""

    network: Network
    loss: Loss
    settings: Settings
    options: Training
    forget: Tokens
    retain: Tokens
    pad_id: int
    accelerator: Accelerator
    text: Tokens | None = None
    """What fine-tuning trains on; the retain set unless given."""
    rates: Sequence[float] = ()
    """Of each step, in place of a schedule."""
    intervention: Intervention = field(default_factory=Intervention)
    """What the method does to the weights beside the steps of the optimiser."""
    search: Search = field(default_factory=Search)
    """When to stop."""
    resume: Path = Path()
    """Where interrupted training is kept, every --checkpoint-every steps."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What a kept state must have been made with."""
    adapter: Any = None  # PEFT's wrapper of the model, where an adapter is trained
    observe: Callable[[int, Mapping[str, Any]], None] = lambda *_: None  # of steps, evaluations
    steps_log: list[StepLog] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds, tokens = 0.0, 0

    def __post_init__(self) -> None:
        options = self.options
        batch = options.batch_size * options.grad_accum_steps * self.accelerator.num_processes
        splits, limit = self.loss.trains_on, len(self.rates) or options.steps
        one, other = (*([len(ids) for ids in self.texts(split)] for split in splits), [])[:2]
        planned = (
            dict(zip(splits, step, strict=False))
            for epoch in (itertools.count() if limit else range(options.epochs))
            for step in data.plan_epoch(
                one, other, batch, self.settings.seed, epoch, self.loss.paired
            )
        )
        self.steps = list(itertools.islice(planned, limit or None))
        self.optimizers = make_optimizers(options.optimizer, self.network, options.lr)
        steps, rates = len(self.steps), self.rates
        self.schedules = [make_schedule(one, steps, options, rates) for one in self.optimizers]
        self.passage: nn.Module = self.network
        self.sharded = hasattr(self.network, "unshard")
        if self.sharded:
            # As prepare() does, but no half-precision copy outlives the gathered weights.
            bf16 = self.accelerator.mixed_precision == "bf16"
            kind = self.accelerator.device.type
            autocast = torch.autocast(kind, torch.bfloat16, enabled=bf16, cache_enabled=False)
            setattr(self.network, "forward", autocast(self.network.forward))  # noqa: B010
            return
        self.passage, *self.optimizers = self.accelerator.prepare(self.network, *self.optimizers)

    @property
    def splits(self) -> dict[str, Tokens]:
        """The splits that were given, by name."""
        own = {"text": self.text} if self.text else {}
        return {"forget": self.forget, "retain": self.retain, **own}

    @property
    def stateful(self) -> list[Any]:
        """What has a state beside the weights: optimisers and schedules."""
        return [*self.optimizers, *self.schedules]

    # ── batches ───────────────────────────────────────────────────────────────────────────────────

    def texts(self, split: str) -> list[list[int]]:
        """The texts of a split that are trained on."""
        return {"text": self.retain, **self.splits}[split].train

    def batch(
        self, split: str, indices: Sequence[int], step: Sequence[int] | None = None
    ) -> SplitBatch:
        """Texts `indices` of a split, with totals over `step` (by default the same texts)."""
        device = self.accelerator.device
        return data.split_batch(self.texts(split), indices, self.pad_id, device, step)

    def _passes(self, step: Mapping[str, list[int]]) -> list[dict[str, list[int]]]:
        """The texts of each pass that this process makes in a step, by split."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        texts = {split: self.texts(split) for split in step}
        size, most = self.options.batch_size, self.options.batch_tokens
        return data.passes_of(step, texts, size, most, rank, processes)

    def used(self, split: str) -> list[int]:
        """Texts of a split that this process will meet, in order of index."""
        passes = [one for step in self.steps for one in self._passes(step)]
        return sorted({index for one in passes for index in one[split]})

    # ── training ──────────────────────────────────────────────────────────────────────────────────

    def train(self, reference: Reference) -> None:
        """Run what is not yet done. Raises BadInput where a loss is not finite."""
        started, done = time.perf_counter(), self._restore()
        wanted = self.options.gradient_checkpointing
        recompute = self.accelerator.device.type == "cuda" if wanted is None else wanted
        bar = progress(description=self.loss.name, total=len(self.steps), unit="step")
        with bar, self.network.checkpointed(recompute):
            bar.update(done)
            self.intervention.start(self, reference)
            while done < len(self.steps):
                done += 1
                log = self._step(done, self.steps[done - 1], reference)
                self.intervention.after_step(self, done)
                self._report(bar, log, time.perf_counter() - started)
                self._keep(done)
                done = self.search.after_step(self, done)
            self.intervention.finish(self)
        self.seconds += time.perf_counter() - started

    def _step(self, number: int, step: Mapping[str, list[int]], reference: Reference) -> StepLog:
        pairs = [
            Pair(**{split: self.batch(split, part, step[split]) for split, part in one.items()})
            for one in self._passes(step)
        ]
        parts = torch.zeros(3, device=self.accelerator.device)
        for pair in pairs:
            last = pair is pairs[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.passage):
                terms: Terms = self.passage(self.loss.compute, pair, reference, self.settings)
                loss = terms.loss
                # Wrappers average gradients over processes; the shares of a loss are to be summed.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            parts += torch.stack([loss, terms.forget, terms.retain]).detach().float()
            self.tokens += sum(int(one.attention_mask.sum()) for one in pair if one is not None)
        total, of_forget, of_retain = self.accelerator.reduce(parts, "sum").tolist()
        weights = [p for p in self.passage.parameters() if p.requires_grad]
        limit = self.options.grad_clip or math.inf
        norm: Tensor | None = self.accelerator.clip_grad_norm_(weights, limit)
        gradient = math.nan if norm is None else float(norm)
        for value, what in ((total, "loss"), (gradient, "gradient norm")):
            if not math.isfinite(value):
                raise BadInput(
                    f"{what} became {value} at step {number} of {len(self.steps)}: nothing is "
                    "saved; lower --lr, or the weight of the forget term"
                )
        lr = float(self.schedules[0].get_last_lr()[0])
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in self.schedules:
            schedule.step()
        self.steps_log.append(StepLog(number, total, of_forget, of_retain, gradient, lr))
        return self.steps_log[-1]

    def _report(self, bar: Any, log: StepLog, elapsed: float) -> None:
        self.observe(log.step, log._asdict())
        speed = self.tokens * self.accelerator.num_processes / elapsed
        line = ", ".join(f"{n} {value:.4g}" for n, value in log._asdict().items() if n != "step")
        bar.set_postfix_str(f"{line}, {speed:.0f} tok/s", refresh=False)
        bar.update(1)
        if log.step % max(1, len(self.steps) // 10) == 0 or log.step == len(self.steps):
            self.say(f"step {log.step}/{len(self.steps)}: {line}")
        if self.options.eval_interval and log.step % self.options.eval_interval == 0:
            self.evaluations.append({"step": log.step, **self.evaluate()})
            self.say(f"evaluation: {self.evaluations[-1]}")
            self.observe(log.step, self.evaluations[-1])

    def say(self, line: str) -> None:
        """Print a line once, however many processes there are."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────

    def evaluate(self, kept: dict[str, list[float]] | None = None) -> dict[str, float | None]:
        """NLLs on the held-out texts, as `measuring.nlls` says."""
        size, most = 2 * self.options.batch_size, self.options.batch_tokens
        return nlls(self.passage, self.splits, self.pad_id, size, self.accelerator, most, kept)

    @torch.no_grad()
    def state_norms(self) -> dict[str, list[float]] | None:
        """Mean ‖h_ℓ‖₂ per target block over the tokens of the first texts of each split, without
        the positions that the settings skip.

        None for a loss that reads no states.
        """
        if not self.loss.targets:
            return None
        found, skip = {}, self.settings.skip_first
        for split in ("forget", "retain"):
            real = [norms[:, skip:][mask[:, skip:]] for norms, mask in self._norms(split)]
            found[split] = [float(one.mean()) for one in real]
            norms = ", ".join(f"{norm:.4g}" for norm in found[split])
            blocks = ", ".join(map(str, self.settings.layers))
            self.say(f"mean ‖h‖ after blocks {blocks}, {split}: {norms}")
        return found

    def _norms(self, split: str) -> list[tuple[Tensor, Tensor]]:
        """As `measuring.norms_after`, of the first texts of a split."""
        first = range(min(NORM_TEXTS, len(self.texts(split))))
        return norms_after(self.passage, self.batch(split, first), self.settings.layers)

    @torch.no_grad()
    def leave_out_sink(self) -> None:
        """Skip the first position where a target block has an attention sink there."""
        if not self.loss.targets:
            return
        norms = [one for split in ("forget", "retain") for one in self._norms(split)]
        ratio = max(ratio_to_others(*one) for one in norms)
        if ratio > SINK:
            self.settings = replace(self.settings, skip_first=1)
            self.say(
                f"the norm of the first position is {ratio:.0f} times the others' (an attention "
                "sink): left out of norms and of squared distances"
            )

    @torch.no_grad()
    def make_reference(self, dtype: torch.dtype, folder: Path) -> Reference:
        """What the base says of the texts that this process meets, from the weights as they are.

        States are kept in `dtype`, the base's own. With an adapter (LoRA) nothing is kept.
        """
        if self.adapter is not None:
            off = self.adapter.disable_adapter
            return AdapterOffReference(self.network, self.settings.layers, off)
        reference = CachedReference(dtype, self.settings.layers, folder)
        hidden = self.network.model.config.get_text_config().hidden_size
        wanted = [("log_probs", split) for split in self.loss.reference_log_probs]
        wanted += [("states", split) for split in state_splits(self.loss, self.settings)]
        for what, split in wanted:
            used = self.used(split)
            lengths = {i: len(self.texts(split)[i]) for i in used}
            if what == "states":
                reference.reserve(split, lengths, hidden)
            size, most = 2 * self.options.batch_size, self.options.batch_tokens
            batches = length_batches(list(lengths.values()), size, most)
            # Sharded weights need equally many passes on all processes: the last is repeated.
            for number in range(max(gather_object([len(batches)]))):
                rows = batches[min(number, len(batches) - 1)]
                batch = self.batch(split, [used[row] for row in rows])
                self.passage(reference.fill, split, batch, what)
        return reference

    # ── interrupted runs ──────────────────────────────────────────────────────────────────────────

    def _keep(self, step: int) -> None:
        every = self.options.checkpoint_every or len(self.steps)
        if step % every or step == len(self.steps):
            return
        if self.accelerator.is_main_process:
            state = checkpointing.trained_state(self.network, self.stateful)
            state |= {"log": [*map(tuple, self.steps_log)], "evaluations": self.evaluations}
            checkpointing.save_state(self.resume, state, self.arguments)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> int:
        """Take up what an interrupted run left; returns the number of steps that are done."""
        kept, load = self.options.checkpoint_every, checkpointing.load_state
        if (state := load(self.resume, self.arguments) if kept else None) is None:
            return 0
        checkpointing.take_up(state, self.network, self.stateful)
        self.steps_log = [StepLog(*one) for one in state["log"]]
        self.evaluations = state["evaluations"]
        self.say(f"resumed after step {len(self.steps_log)} of {len(self.steps)}")
        return len(self.steps_log)
