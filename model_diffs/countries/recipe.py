"""How texts are drawn and invented facts taught. No heavy import: options are made of it."""

from dataclasses import dataclass

from model_diffs.core.options import natural, option, positive, seedable


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Seeds, and the teaching of invented facts."""

    seed: int = option(42, "seed of folds, choices and teaching", check=seedable)
    world_seed: int = option(42, "seed of the invented countries", check=seedable)
    lr: float = option(2e-4, "learning rate of the teaching", check=positive)
    epochs: int = option(3, "times that each text is read", check=positive)
    batch_size: int = option(8, "texts per step", check=positive)
    warmup_steps: int = option(10, "steps of linear warm-up", check=natural)
