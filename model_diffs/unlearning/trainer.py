"""The training loop, the same for every method."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.unlearning import Method
from model_diffs.unlearning.checkpointing import gradient_checkpointing, load_state, save_state
from model_diffs.unlearning.data import (
    Pair,
    SplitBatch,
    Step,
    Tokens,
    plan_epoch,
    share_of,
    split_batch,
)
from model_diffs.unlearning.evaluation import HeldOut, mean_nll
from model_diffs.unlearning.losses import Terms
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import make_optimizers, make_schedules
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings
from model_diffs.unlearning.sharding import is_sharded


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the defaults are those of `unlearn.py`."""

    lr: float = 1e-5
    epochs: int = 1
    batch_size: int = 4
    """Texts per split, process and pass."""
    grad_accum_steps: int = 1
    warmup_steps: int = 0
    grad_clip: float = 1.0
    """Largest gradient norm, 0 = as it comes."""
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    eval_interval: int = 0
    checkpoint_every: int = 0
    seed: int = 42


class StepLog(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float
    forget: float
    """Forget term of the loss."""
    retain: float
    """Retain term of the loss, its weight included."""
    grad_norm: float
    """Before clipping."""
    lr: float


@dataclass
class Trainer:
    """One method on one model with one set of texts."""

    network: Network
    method: Method
    settings: Settings
    schedule: Schedule
    forget: Tokens
    retain: Tokens
    pad_id: int
    accelerator: Accelerator
    resume: Path | None = None
    """Where interrupted training is kept; None: nowhere."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What a kept state must have been made with."""

    steps_log: list[StepLog] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        schedule, processes = self.schedule, self.accelerator.num_processes
        batch = schedule.batch_size * schedule.grad_accum_steps * processes
        lengths = [len(ids) for ids in self.forget.train]
        retain = [len(ids) for ids in self.retain.train] if self.method.uses_retain else []
        self.steps: list[Step] = [
            step
            for epoch in range(schedule.epochs)
            for step in plan_epoch(lengths, retain, batch, schedule.seed, epoch, self.method.paired)
        ]
        self.optimizers = make_optimizers(schedule.optimizer, self.network, schedule.lr)
        self.schedules = make_schedules(self.optimizers, schedule.warmup_steps, len(self.steps))
        self.passage: nn.Module = self.network
        if is_sharded(self.network):
            # As prepare() does, but no half-precision copy outlives the gathered weights.
            bf16 = self.accelerator.mixed_precision == "bf16"
            kind = self.accelerator.device.type
            autocast = torch.autocast(kind, torch.bfloat16, enabled=bf16, cache_enabled=False)
            setattr(self.network, "forward", autocast(self.network.forward))  # noqa: B010
            return
        self.passage, *self.optimizers = self.accelerator.prepare(self.network, *self.optimizers)

    # ── batches ───────────────────────────────────────────────────────────────────────────────────

    def texts(self, split: str) -> list[list[int]]:
        """The texts of a split that are trained on."""
        return (self.forget if split == "forget" else self.retain).train

    def batch(
        self, split: str, indices: Sequence[int], step: Sequence[int] | None = None
    ) -> SplitBatch:
        """Texts `indices` of a split, with totals over `step` (by default the same texts)."""
        device = self.accelerator.device
        return split_batch(self.texts(split), indices, self.pad_id, device, step)

    def _share(self, indices: list[int]) -> list[list[int]]:
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        return share_of(indices, self.schedule.batch_size, rank, processes)

    def _pairs(self, step: Step) -> list[Pair]:
        forget = [self.batch("forget", one, step.forget) for one in self._share(step.forget)]
        if not step.retain:
            return [Pair(one, None) for one in forget]
        retain = [self.batch("retain", one, step.retain) for one in self._share(step.retain)]
        return [Pair(f, r) for f, r in zip(forget, retain, strict=True)]

    def used(self, split: str) -> list[int]:
        """Texts of a split that this process will meet, in order of index."""
        return sorted(
            {i for step in self.steps for one in self._share(getattr(step, split)) for i in one}
        )

    # ── training ──────────────────────────────────────────────────────────────────────────────────

    def train(self, reference: Reference) -> None:
        """Run all steps that are not yet done. Raises BadInput where a loss is not finite."""
        started, done = time.perf_counter(), self._restore()
        bar = progress(description=self.method.name, total=len(self.steps), unit="step")
        bar.update(done)
        with ExitStack() as stack:
            stack.enter_context(bar)
            stack.enter_context(
                gradient_checkpointing(self.network.model, self.schedule.gradient_checkpointing)
            )
            for number, step in enumerate(self.steps[done:], start=done + 1):
                log = self._step(number, step, reference)
                self._report(bar, log, time.perf_counter() - started)
                self._evaluate_between(number)
                self._keep(number)
        self.seconds += time.perf_counter() - started

    def _step(self, number: int, step: Step, reference: Reference) -> StepLog:
        pairs = self._pairs(step)
        parts = torch.zeros(3, device=self.accelerator.device)
        for i, pair in enumerate(pairs):
            with ExitStack() as stack:
                if i < len(pairs) - 1:
                    stack.enter_context(self.accelerator.no_sync(self.passage))
                terms: Terms = self.passage(self.method.loss(), pair, reference, self.settings)
                # Wrappers average gradients over processes; the shares of a loss are to be summed.
                self.accelerator.backward(terms.loss * self.accelerator.num_processes)
            parts += torch.stack([part.detach().float() for part in terms])
            self.tokens += int(pair.forget.attention_mask.sum())
            self.tokens += 0 if pair.retain is None else int(pair.retain.attention_mask.sum())
        loss, forget, retain = self.accelerator.reduce(parts, "sum").tolist()
        self._check(number, loss, "loss")
        norm = self._clipped_norm()
        self._check(number, norm, "gradient norm")
        lr = float(self.schedules[0].get_last_lr()[0])
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in self.schedules:
            schedule.step()
        log = StepLog(number, loss, forget, retain, norm, lr)
        self.steps_log.append(log)
        return log

    def _clipped_norm(self) -> float:
        weights = [p for p in self.passage.parameters() if p.requires_grad]
        limit = self.schedule.grad_clip or math.inf
        norm: Tensor | None = self.accelerator.clip_grad_norm_(weights, limit)
        return float("nan") if norm is None else float(norm)

    def _check(self, number: int, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise BadInput(
                f"{what} became {value} at step {number} of {len(self.steps)}: nothing is saved; "
                "lower --lr, or the weight of the forget term"
            )

    def _report(self, bar: Any, log: StepLog, elapsed: float) -> None:
        bar.set_postfix_str(
            f"loss {log.loss:.4g} forget {log.forget:.4g} retain {log.retain:.4g} "
            f"|g| {log.grad_norm:.3g} lr {log.lr:.2g} "
            f"{self.tokens * self.accelerator.num_processes / elapsed:.0f} tok/s",
            refresh=False,
        )
        bar.update(1)
        every = max(1, len(self.steps) // 10)
        if log.step % every == 0 or log.step == len(self.steps):
            self.say(
                f"step {log.step}/{len(self.steps)}: loss {log.loss:.5g}, forget {log.forget:.5g}, "
                f"retain {log.retain:.5g}, gradient {log.grad_norm:.3g}, lr {log.lr:.3g}"
            )

    def say(self, line: str) -> None:
        """Print a line once, however many processes there are."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────

    def evaluate(self) -> HeldOut:
        """NLL on the held-out texts of both splits."""
        size = 2 * self.schedule.batch_size
        values = [
            mean_nll(self.passage, self.accelerator, split.held_out, size, self.pad_id)
            for split in (self.forget, self.retain)
        ]
        return HeldOut(*values)

    def _evaluate_between(self, number: int) -> None:
        interval = self.schedule.eval_interval
        if interval and number % interval == 0:
            found = self.evaluate().facts()
            self.evaluations.append({"step": number, **found})
            self.say(f"step {number}: {found}")

    # ── interrupted runs ──────────────────────────────────────────────────────────────────────────

    def _keep(self, number: int) -> None:
        every = self.schedule.checkpoint_every
        if not every or number % every or self.resume is None or number == len(self.steps):
            return
        if self.accelerator.is_main_process:
            state = {
                "step": number,
                "weights": self._trained(),
                "optimizers": [one.state_dict() for one in self.optimizers],
                "schedules": [one.state_dict() for one in self.schedules],
                "log": [tuple(one) for one in self.steps_log],
                "evaluations": self.evaluations,
            }
            save_state(self.resume, state, self.arguments)
        self.accelerator.wait_for_everyone()

    def _trained(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.network.named_parameters() if p.requires_grad}

    def _restore(self) -> int:
        """Take up what an interrupted run left; returns the number of steps that are done."""
        if not self.schedule.checkpoint_every or self.resume is None:
            return 0
        state = load_state(self.resume, self.arguments)
        if state is None:
            return 0
        with torch.no_grad():
            for name, weight in self._trained().items():
                weight.copy_(state["weights"][name])
        for one, kept in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(kept)
        for schedule, kept in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(kept)
        self.steps_log = [StepLog(*one) for one in state["log"]]
        self.evaluations = state["evaluations"]
        self.say(f"resumed after step {state['step']} of {len(self.steps)}")
        return int(state["step"])
