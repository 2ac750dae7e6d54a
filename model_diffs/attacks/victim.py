"""A loaded model under attack: what it answers, and its weights, put back after each attack.

One model is in memory. Its own stored weights, the base's and the filtered model's are read by name
from mapped files, a tensor at a time: to change weights, and to put them back.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from model_diffs.activations import passes
from model_diffs.activations.passes import SplitPass
from model_diffs.core.options import Reading
from model_diffs.data.questions import Question
from model_diffs.evaluation import scoring
from model_diffs.evaluation.scoring import Answer
from model_diffs.models import architectures, checkpoints, loading
from model_diffs.models.anatomy import Anatomy, locate
from model_diffs.models.architectures import OUTSIDE, Matrix
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import wide

T = TypeVar("T")
Questions = Sequence[Question]
Ask = Callable[[Questions], list[Answer]]
"""Answers to questions, in their order."""


def squared(tensor: Tensor) -> float:
    """‖·‖², a few rows at a time, in fp64."""
    parts = (wide(part).square().sum() for part in checkpoints.chunks(tensor))
    return math.fsum(float(part) for part in parts)


class NotApplicable(Exception):
    """An attack, or a strength of it, that this model cannot be given, and why."""


class Opened(NamedTuple):
    """A model under attack."""

    ask: Ask
    undone: float | None = None
    """Of a reversal: the share of ‖W − W_base‖², over all weights, that it undid."""


class Victim:
    """A loaded model, with what attacks need."""

    def __init__(
        self,
        model: str,
        questions: dict[str, list[Question]],
        options: Reading,
        *,
        base: str | None = None,
        filtered: str | None = None,
        seed: int = 42,
    ) -> None:
        """`questions`: by group, of `material.GROUPS`. Raises BadInput for unusable files."""
        self.name, self.questions, self.options, self.seed = model, questions, options, seed
        self.stored = Checkpoint.open(model)
        self.base = Checkpoint.open(base) if base else None
        self.filtered = Checkpoint.open(filtered) if filtered else None
        self.model: Any = loading.load_for(options, model).requires_grad_(False)
        self.tokenizer = loading.load_tokenizer(model, options.trust_remote_code)
        self.anatomy: Anatomy = locate(self.model)
        self.parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        self._kept: dict[str, Any] = {}
        self.strengths: tuple[str, ...] = ()
        """Of the attack under way, all that will be tried, where that is known."""

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """Of the model and of those it is compared with, by role."""
        every = {"model": self.stored, "base": self.base, "filtered": self.filtered}
        return {role: one for role, one in every.items() if one}

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return len(self.anatomy.blocks)

    def spaced_blocks(self, most: int) -> list[int]:
        """All blocks, or `most` evenly spaced ones, the first and the last among them."""
        if self.blocks <= most:
            return [*range(self.blocks)]
        return [round(i * (self.blocks - 1) / (most - 1)) for i in range(most)]

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def ask(self, questions: Questions) -> list[Answer]:
        """What the model answers as it is now."""
        size = 4 * self.options.batch_size
        return scoring.score(self.model, self.tokenizer, questions, size)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gives, kept for the next strength until another attack begins."""
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def forget_kept(self) -> None:
        """Release what was kept: another attack begins."""
        self._kept.clear()
        self.strengths = ()

    def sample(self) -> list[SplitPass]:
        """The forget and the retain set in this model's tokens."""
        return passes.of_splits(self.options, [self.name], self.model)[0]

    # ── weights ───────────────────────────────────────────────────────────────────────────────────

    def _stored_name(self, name: str) -> str:
        """The name in the own checkpoint of a parameter of the loaded model."""
        known = [name, name.removeprefix(f"{self.model.base_model_prefix}.")]
        if self.parameters[name] is self.anatomy.head.weight:
            # transformers names GPT-NeoX's head otherwise than its checkpoints do.
            known += [one.tensor for one in self.stored.matrices() if one.component == "head"]
        for candidate in known:
            if candidate in self.stored.entries:
                return candidate
        raise NotApplicable(f"{name} is stored under another name or in parts")

    def _read(self, checkpoint: Checkpoint, stored: str) -> Tensor:
        """A stored tensor in fp32 on the model's device. Not to be written to."""
        return checkpoint.tensor(stored).to(self.device).float()

    def tensors(self, other: Checkpoint) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every weight: its name in the loaded model, as stored, and as `other` stores it, in fp32.

        Raises BadInput where `other` is of another architecture.
        """
        names = checkpoints.match(self.stored, other)
        for name in self.parameters:
            stored = self._stored_name(name)
            yield name, self._read(self.stored, stored), self._read(other, names[stored])

    def matrices(self) -> list[Matrix]:
        """The weight matrices of the blocks, by their names in the loaded model."""
        kind = self.model.config.get_text_config().model_type
        named = self.parameters.items()
        found = (architectures.matrices(name, one.shape, kind) for name, one in named)
        return [one for of_tensor in found for one in of_tensor if one.layer != OUTSIDE]

    def inside_blocks(self) -> Iterator[tuple[Matrix, Tensor]]:
        """Every matrix of the blocks as stored, `[out, in]` in fp32."""
        for matrix in self.matrices():
            yield matrix, matrix.take(self._read(self.stored, self._stored_name(matrix.tensor)))

    def changed(self, change: Callable[[Matrix, Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the blocks' matrices, each matrix `[out, in]` in fp32 replaced by what
        `change` makes of it."""
        for name, inside in itertools.groupby(self.matrices(), key=lambda one: one.tensor):
            tensor = self._read(self.stored, self._stored_name(name)).clone()
            for matrix in inside:
                W = matrix.take(tensor)
                W.copy_(change(matrix, W.clone()))
            yield name, tensor

    def reading(self, other: Checkpoint) -> Callable[[Matrix], Tensor]:
        """Reads a matrix `[out, in]` of another checkpoint in fp32."""
        names = checkpoints.match(self.stored, other)

        def read(matrix: Matrix) -> Tensor:
            return matrix.take(self._read(other, names[self._stored_name(matrix.tensor)]))

        return read

    @contextmanager
    def replaced(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """The model with these weights, by name, until the block ends; then those stored again.

        The stored weights are what was loaded, so they are put back bit for bit.
        """
        touched = []
        try:
            for name, tensor in tensors:
                touched.append(name)
                self.parameters[name].data.copy_(tensor)
            yield
        finally:
            for name in touched:
                self.parameters[name].data.copy_(self.stored.tensor(self._stored_name(name)))

    def distance(self, other: Checkpoint) -> float:
        """‖W − W_other‖² over all weights, in fp64."""

        def total() -> float:
            return sum(squared(W - B) for _, W, B in self.tensors(other))

        return self.once(f"distance {other.model}", total)
