"""A trainer small enough to be followed by hand: plain gradient descent in fp64 on short texts."""

import math
import random
from pathlib import Path
from typing import Any

import tiny_models
import torch
from accelerate import Accelerator

from model_diffs.unlearning.data import Tokens
from model_diffs.unlearning.losses import get_loss
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.settings import Settings, Training
from model_diffs.unlearning.trainer import Trainer

CPU = torch.device("cpu")
SETTINGS = Settings(layers=(0, 1), steering=(2.0, 3.0), alpha=2.0, retain_weight=1.5, seed=7)


class OneOf(Accelerator):
    """One of several processes that do not speak to each other."""

    place, count = 0, 1

    @property
    def process_index(self) -> int:
        return self.place

    @property
    def num_processes(self) -> int:
        return self.count

    @property
    def is_main_process(self) -> bool:
        return self.place == 0

    def reduce(self, tensor: torch.Tensor, reduction: str = "mean", scale: float = 1.0) -> Any:
        assert reduction == "sum", "shares of a step add up"
        return tensor


def make_texts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 250) for _ in range(rng.randint(2, 9))] for _ in range(count)]


def make_trainer(method: str, rank: int = 0, processes: int = 1, **options: Any) -> Trainer:
    """A trainer by plain gradient descent in fp64, 7 forget and 4 retain texts."""
    accelerator = OneOf(cpu=True)
    accelerator.place, accelerator.count = rank, processes
    settings = options.pop("settings", SETTINGS)
    training = {"lr": 0.05, "batch_size": 2, "grad_clip": 0.0, "optimizer": "sgd", **options}
    forget = Tokens(make_texts(7, 1), make_texts(3, 2), {})
    retain = Tokens(make_texts(4, 3), make_texts(2, 4), {})
    network = Network(tiny_models.build("gpt_neox").double())
    loss = get_loss(method)
    return Trainer(network, loss, settings, Training(**training), forget, retain, 0, accelerator)


def weights_of(trainer: Trainer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trainer.network.parameters()]


def trained(trainer: Trainer, folder: Path) -> list[torch.Tensor]:
    trainer.train(trainer.make_reference(torch.float64, folder))
    return weights_of(trainer)


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """The factor of the rate at a step from 0: linear warm-up, then half a cosine."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
