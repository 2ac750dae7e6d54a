"""How the miniature is trained. No heavy import: the command line is made from `Recipe`."""

from dataclasses import dataclass
from typing import NamedTuple

from model_diffs.core.options import option, positive, seedable


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training."""

    world_seed: int = option(42, "seed of the world and its texts", check=seedable)
    seed: int = option(42, "seed of the training", check=seedable)
    steps: int = option(240, "training steps", check=positive)
    lr_matrices: float = option(
        0.04, "largest rate of Muon, for matrices of blocks", check=positive
    )
    lr: float = option(6e-3, "largest rate of AdamW, for all else", check=positive)
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
