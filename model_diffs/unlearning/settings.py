"""Options of `unlearn.py`, each declared once, and what of them depends on the model.

Without torch: the script declares its command line with this.
"""

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Literal

from model_diffs.core import command_line, methods, options
from model_diffs.core.errors import BadInput
from model_diffs.core.options import (
    Compute,
    Run,
    Splits,
    fraction,
    natural,
    option,
    positive,
    seedable,
    share,
)

if TYPE_CHECKING:
    from model_diffs.unlearning.losses import Loss

OptimizerName = Literal["adamw", "sgd", "adafactor", "muon"]
DEFAULT_STEERING = 20.0


def _read_by(name: str, text: str) -> str:
    """A help text that names the methods that the option acts on."""
    every = methods.METHODS.values()
    readers = [method.name for method in every if name in (*method.options, *method.inputs)]
    return f"{text} ({', '.join(readers)})"


def _bits(value: int) -> None:
    if not 2 <= value <= 16:
        raise ValueError(f"{value} is not a number of bits from 2 to 16")


def _steering(text: str) -> str:
    return text if text == "auto" else str(float(text))


def _block_or_all(text: str) -> str:
    return text if text == "all" else str(int(text))


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Losses, and the methods that read each number."""

    beta: float = option(0.1, _read_by("beta", "β"), check=positive)
    gamma: float = option(0.0, _read_by("gamma", "γ"))
    logprob_reduction: Literal["mean", "sum"] = option(
        "mean", _read_by("logprob_reduction", "log-probability per token or per text")
    )
    alpha: float = option(100.0, _read_by("alpha", "weight of the retain term"), check=natural)
    forget_weight: float = option(1.0, _read_by("forget_weight", "term weight"), check=natural)
    retain_weight: float = option(1.0, _read_by("retain_weight", "NLL weight"), check=natural)
    cb_target: Literal["random", "orthogonal"] = option(
        "random", _read_by("cb_target", "target direction, or away from the base")
    )
    lat_eps: float = option(0.1, _read_by("lat_eps", "bound of the perturbation"), check=positive)
    lat_steps: int = option(5, _read_by("lat_steps", "steps of the adversary"), check=natural)


@dataclass(frozen=True, kw_only=True)
class Settings(Formula):
    """What a loss reads, resolved against the model."""

    layers: tuple[int, ...] = ()
    """Target blocks, 0-based, sorted; ℓ is the output of block ℓ."""
    steering: tuple[float, ...] = ()
    """c of rmu, one per target block."""
    skip_first: int = 0
    """First positions that squared distances and norms leave out: 1 with an attention sink."""
    lat_layers: tuple[int, ...] = (0,)
    """Blocks whose outputs the adversary perturbs."""
    lat_step_size: float = 0.0
    seed: int = Run.seed


@dataclass(frozen=True, kw_only=True)
class Losses(Formula):
    """Losses: blocks and scales, resolved against the model."""

    layer_id: str = option("5,6,7", _read_by("layer_id", "target blocks, from 0"))
    steering_coeff: str | None = option(
        None, _read_by("steering_coeff", "number or auto; default 20"), convert=_steering
    )
    lat_layer: str | None = option(
        None,
        _read_by("lat_layer", "a block, or all of --layer-id; default: its middle, or first"),
        convert=_block_or_all,
    )
    lat_step_size: float | None = option(
        None, _read_by("lat_step_size", "of the adversary; default ε/4"), check=positive
    )


@dataclass(frozen=True, kw_only=True)
class Texts(Splits):
    """Reading of texts."""

    max_samples: int = option(0, "samples per split; 0 = all", check=natural)
    max_length: int = option(512, "tokens per sample", check=positive)
    eval_split: float = option(0.1, "share of each split held out to measure NLL", check=share)
    questions: str | None = option(None, "JSONL of four-choice questions to score")
    text: str | None = option(
        None, _read_by("text", "the file that is trained on; default: the retain set")
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training."""

    lr: float = option(1e-5, "learning rate", check=positive)
    epochs: int = option(1, "passes over the longer split", check=positive)
    steps: int = option(0, "optimizer steps, in place of --epochs; 0 = off", check=natural)
    batch_size: int = option(4, "texts per split, process and pass", check=positive)
    grad_accum_steps: int = option(1, "batches per optimizer step", check=positive)
    batch_tokens: int = option(
        0,
        "tokens of a split in one pass, padding included: larger batches are taken in parts; 0 = "
        "any number",
        check=natural,
        recorded=False,
    )
    warmup_steps: int = option(0, "steps of linear warm-up", check=natural)
    grad_clip: float = option(1.0, "largest gradient norm; 0 = off", check=natural)
    optimizer: OptimizerName = option("adamw", "muon: matrices inside blocks; AdamW for the rest")
    trainable: str = option("all", "all, layers (those of --layer-id), or a name pattern")
    lora_rank: int = option(0, "rank of a LoRA adapter (needs the lora extra)", check=natural)
    gradient_checkpointing: bool | None = option(None, "default: on for cuda only")
    eval_interval: int = option(0, "measure NLL every N steps; 0 = off", check=natural)
    checkpoint_every: int = option(0, "keep the state every N steps; 0 = never", check=natural)
    save_dtype: Literal["base", "fp32", "fp16", "bf16"] = option("base", "of the saved weights")


def _goal(text: str) -> str:
    domain, equals, target = text.partition("=")
    if not (domain and equals) or not 0 < float(target) < 1:
        raise ValueError(f"{text!r} is not of the form hazard=0.30")
    return f"{domain}={float(target):g}"


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How far a method goes."""

    until: str | None = option(
        None,
        "stop where accuracy on fold tune of this domain is within 0.05 of this and general "
        "accuracy at least 0.95, such as hazard=0.30 (needs --questions)",
        convert=_goal,
    )
    scale: float = option(
        1.0, _read_by("scale", "times that what training adds is subtracted"), check=positive
    )
    pruned: float = option(
        0.5, _read_by("pruned", "share of the MLP neurons removed at most"), check=share
    )
    teacher: str | None = option(None, _read_by("teacher", "model that is imitated"))
    noise_share: float = option(
        0.5, _read_by("noise_share", "share of each matrix that noise replaces"), check=fraction
    )


@dataclass(frozen=True, kw_only=True)
class Editing:
    """Models made without training."""

    like: str | None = option(
        None,
        _read_by("like", "model whose change from the base sets the norms, or the rates per step"),
    )
    bits: int = option(4, _read_by("bits", "bits per weight"), check=_bits)
    spectrum: Literal["gaussian", "keep"] = option(
        "gaussian", _read_by("spectrum", "of each change; keep: that of --like, rotated")
    )


@dataclass(frozen=True, kw_only=True)
class Options(Losses, Texts, Training, Strength, Editing, Compute):
    """Unlearning."""

    model: str = option(help="base: org/name[@revision] or a folder", recorded=False)
    method: str = option(
        help="; ".join(f"{one.name}: {one.says}" for one in methods.METHODS.values()),
        check=methods.known,
    )
    outdir: str | None = option(
        None,
        "folder of the model (default: unlearned_models/<model>__<method>)",
        recorded=False,
        written=True,
    )
    push_to: str | None = option(
        None,
        "upload the model to this (private) org/name of the hub when it is done",
        recorded=False,
    )
    seed: int = option(Run.seed, "seed of everything random", check=seedable)
    force: bool = option(False, "run again what is complete", recorded=False)


# Options of training that also act on a model that is made without it.
_OF_ANY_MAKING = {"batch_size", "save_dtype"}


def without_effect(name: str) -> set[str]:
    """Options that a method has no use for: other methods' inputs, training where it has none."""
    method = methods.METHODS[name]
    foreign = {one for other in methods.METHODS.values() for one in other.inputs} - {*method.inputs}
    if method.making != "trained":
        trained = (*fields(Formula), *fields(Losses), *fields(Training), *fields(Strength))
        foreign |= {one.name for one in trained} - _OF_ANY_MAKING
    return foreign


def check(given: Options) -> None:
    """Raise BadInput for an option that the method needs and lacks, or has no use for."""
    method = methods.METHODS[given.method]
    foreign = without_effect(given.method)
    for one in fields(given):
        value = getattr(given, one.name)
        if one.name in method.required and not value:
            raise BadInput(f"--method {method.name} needs {options.flag(one.name)}")
        if one.name == "until" and value and not given.questions:
            raise BadInput("--until needs --questions: it is their accuracy that is aimed at")
        if one.name == "like" and value and method.making == "trained" and given.steps:
            raise BadInput("--steps has no effect beside --like, which gives a rate for each step")
        if one.name == "until" and value and given.checkpoint_every:
            raise BadInput("--checkpoint-every cannot keep the state of --until: leave one out")
        if one.name in foreign and one.default is not MISSING and value != one.default:
            raise BadInput(
                f"{options.flag(one.name)} has no effect on --method {method.name}: leave it out"
            )


# ── resolved against the model ────────────────────────────────────────────────────────────────────


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


def resolve(given: Options, loss: "Loss", blocks: int) -> Settings:
    """The settings of a run on a model of `blocks` blocks. Raises BadInput for a missing block.

    `steering` stays empty where --steering-coeff is auto: it is measured later.
    """
    by_layer = loss.targets or loss.adversary or given.trainable == "layers"
    layers = parse_layers(given.layer_id, blocks) if by_layer else ()
    coefficient = given.steering_coeff
    attacked: tuple[int, ...] = (0,)
    automatic = coefficient == "auto" and loss.name == "rmu"
    c = DEFAULT_STEERING if coefficient in (None, "auto") else float(coefficient or 0)
    if loss.adversary:
        attacked = (layers[0] if loss.targets else layers[len(layers) // 2],)
        if given.lat_layer is not None:
            named = given.layer_id if given.lat_layer == "all" else given.lat_layer
            attacked = parse_layers(named, blocks, "--lat-layer")
        if loss.targets and attacked[-1] > layers[-1]:
            raise BadInput(
                f"--lat-layer {attacked[-1]} lies above every block of --layer-id: no loss sees it"
            )
    return Settings(
        **{one.name: getattr(given, one.name) for one in fields(Formula)},
        layers=layers,
        steering=() if automatic else (c,) * len(layers),
        lat_layers=attacked,
        lat_step_size=given.lat_step_size or given.lat_eps / 4,
        seed=given.seed,
    )


if __name__ == "__main__":  # for run_unlearn.sh: the options that take a value, aliases first
    named = {one.name for one in fields(Options) if one.type not in (bool, bool | None)}
    also = [alias for alias, name in command_line.ALIASES.items() if name in named - {"model"}]
    print(*map(options.flag, (*also, *sorted(named - {"method"}))))
