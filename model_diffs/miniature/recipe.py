"""How the miniature is trained. No heavy import: the command line is made from `Recipe`."""

from dataclasses import dataclass
from typing import NamedTuple

from model_diffs.core.options import option, positive, seedable


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training."""

    seed: int = option(42, "seed of the world and of the training", check=seedable)
    steps: int = option(500, "training steps", check=positive)
    lr: float = option(4e-3, "peak of the one-cycle schedule", check=positive)
    batch_size: int = option(128, "sentences per step", check=positive)


class SaeRecipe(NamedTuple):
    """How an SAE of the miniature is trained."""

    expansion_factor: int = 4
    """Features per dimension of the activation."""
    k: int = 16
    steps: int = 400
    batch_size: int = 1024
    """Tokens per step."""
    lr: float = 2e-3
    texts_per_pass: int = 64
