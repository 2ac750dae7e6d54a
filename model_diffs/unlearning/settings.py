"""What the losses take from the command line, resolved against the model."""

from dataclasses import dataclass
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.unlearning import Method


@dataclass(frozen=True)
class Settings:
    """Numbers of the formulas; the defaults are those of `unlearn.py`."""

    beta: float = 0.1
    gamma: float = 0.0
    logprob_reduction: str = "mean"
    """`mean`: log-probability per token; `sum`: of the whole text."""
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    alpha: float = 100.0
    layers: tuple[int, ...] = ()
    """Target blocks, 0-based, sorted; ℓ is the output of block ℓ."""
    steering: tuple[float, ...] = ()
    """c of rmu, one per target block."""
    cb_target: str = "random"
    """`random`: towards u_ℓ; `orthogonal`: away from the base's own direction."""
    lat_layer: int = 0
    lat_eps: float = 0.1
    lat_steps: int = 5
    lat_step_size: float = 0.025
    seed: int = 42


def parse_layers(text: str, blocks: int, flag: str = "--layer-id") -> tuple[int, ...]:
    """`"5,6,7"` → (5, 6, 7), sorted, each once. Raises BadInput outside 0 … blocks − 1."""
    try:
        layers = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError as error:
        raise BadInput(f"{flag} {text!r}: block numbers separated by commas, please") from error
    if not layers:
        raise BadInput(f"{flag} is empty: name at least one block")
    wrong = [layer for layer in layers if not 0 <= layer < blocks]
    if wrong:
        raise BadInput(f"{flag} {wrong[0]}: the model has blocks 0 to {blocks - 1}")
    return tuple(layers)


def _adversary_layer(options: Any, method: Method, layers: tuple[int, ...], blocks: int) -> int:
    if options.lat_layer is None:
        return layers[0] if method.targets else layers[len(layers) // 2]
    (layer,) = parse_layers(str(options.lat_layer), blocks, "--lat-layer")
    if method.targets and layer > layers[-1]:
        raise BadInput(f"--lat-layer {layer} lies above every block of --layer-id: no loss sees it")
    return layer


def resolve(options: Any, method: Method, blocks: int) -> Settings:
    """The settings of a run on a model of `blocks` blocks.

    `steering` stays empty where --steering-coeff is auto: it is measured later.
    Raises BadInput for a block that does not exist.
    """
    by_layer = method.targets or method.adversary or options.trainable == "layers"
    layers = parse_layers(options.layer_id, blocks) if by_layer else ()
    given = options.steering_coeff
    return Settings(
        beta=options.beta,
        gamma=options.gamma,
        logprob_reduction=options.logprob_reduction,
        forget_weight=options.forget_weight,
        retain_weight=options.retain_weight,
        alpha=options.alpha,
        layers=layers,
        steering=() if given == "auto" else (float(given),) * len(layers),
        cb_target=options.cb_target,
        lat_layer=_adversary_layer(options, method, layers, blocks) if method.adversary else 0,
        lat_eps=options.lat_eps,
        lat_steps=options.lat_steps,
        lat_step_size=options.lat_step_size or options.lat_eps / 4,
        seed=options.seed,
    )
