"""How the miniature is trained. Standard library only: scripts take defaults from it."""

from typing import NamedTuple


class Recipe(NamedTuple):
    """Settings of the training."""

    steps: int = 500
    lr: float = 4e-3
    """Peak of the one-cycle schedule."""
    batch_size: int = 128
    """Sentences per step."""
    warmup: float = 0.15
    """Share of the steps until the peak."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    """Largest norm of the gradient."""


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
