"""Options declared once: a dataclass is the configuration of a script and its command line.

    @dataclass(frozen=True, kw_only=True)
    class Options(Comparison, Compute):
        "Spectra"                                       # heading in --help
        tol: float = option(1e-3, "relative error of σ₁", check=positive)

A field without default is required. `Literal` types give choices, `tuple[T, ...]` takes several
words, `bool` is a switch (`bool | None`: --x, --no-x, or undecided). Standard library only.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

Format = Literal["png", "pdf", "svg"]
DTypeName = Literal["auto", "fp32", "fp16", "bf16"]

# ── checks: raise ValueError with the reason ──────────────────────────────────────────────────────


def _within(holds: Callable[[float], bool], what: str) -> Callable[[float], None]:
    def check(value: float) -> None:
        if not holds(value):
            raise ValueError(f"{value} is not {what}")

    return check


positive = _within(lambda value: 0 < value < math.inf, "a number above 0")
natural = _within(lambda value: 0 <= value < math.inf, "a number of at least 0")
fraction = _within(lambda value: 0 < value <= 1, "above 0 and at most 1")
share = _within(lambda value: 0 <= value < 1, "at least 0 and below 1")
# What every generator of random numbers takes: NumPy's seed has 32 bits, torch's 64, and the seeds
# that are derived from one (for a layer, say) must fit as well.
seedable = _within(lambda value: 0 <= value < 2**32, f"a seed from 0 to {2**32 - 1}")


def gigabytes(text: str) -> str:
    """`24,32`: of the device and of main memory; `32` where both are one. ValueError otherwise."""
    if text.count(",") > 1:
        raise ValueError(f"{text!r}: two numbers at most")
    for part in text.split(","):
        positive(float(part))
    return text


def _first_positions(text: str) -> int | None:
    """`auto` is None."""
    if text == "auto":
        return None
    if not text.isdigit():
        raise ValueError(f"{text!r} is neither auto nor a number of positions")
    return int(text)


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    check: Callable[[Any], None] | None = None,
    convert: Callable[[str], Any] | None = None,
    recorded: bool = True,
    repeat: bool = False,
    written: bool = False,
) -> Any:
    """A documented field of an options dataclass.

    `check` gets each converted value and raises ValueError; `convert` replaces the conversion by
    the field's type. `recorded=False`: not part of what decides a result, as where it is written.
    `repeat`: the values of a tuple's flag given several times add up; otherwise the last one holds.
    `written`: a place for results; every other file or folder named is read.
    """
    about: dict[str, Any] = {"help": help, "check": check, "convert": convert}
    about |= {"recorded": recorded, "repeat": repeat, "written": written}
    return field(default=default, metadata=about)


def flag(name: str) -> str:
    """The flag of a field: `max_samples` → `--max-samples`."""
    return "--" + name.replace("_", "-")


def recorded(options: Any) -> dict[str, Any]:
    """The options that decide a result, by name: what run.json keeps and compares."""
    return {
        one.name: getattr(options, one.name)
        for one in sorted(fields(options), key=lambda one: one.name)
        if one.metadata.get("recorded", True)
    }


# ── groups that scripts share ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Run:
    """Results."""

    outroot: str = option("outputs", "folder of all results", recorded=False, written=True)
    outdir: str | None = option(
        None, "place the one result folder here instead", recorded=False, written=True
    )
    seed: int = option(42, "seed of everything random", check=seedable)
    force: bool = option(False, "run again what is complete", recorded=False)


@dataclass(frozen=True, kw_only=True)
class Comparison(Run):
    """Models."""

    model_a: str = option(help="base: org/name[@revision] or a folder", recorded=False)
    model_b: tuple[str, ...] = option(help="changed models", recorded=False)


@dataclass(frozen=True, kw_only=True)
class ComparisonOrTable(Run):
    """Models (or a table to draw, with --outdir)."""

    model_a: str | None = option(None, "base: org/name[@revision] or a folder", recorded=False)
    model_b: tuple[str, ...] = option((), "changed models", recorded=False)


@dataclass(frozen=True, kw_only=True)
class Models(Run):
    """Models."""

    model: tuple[str, ...] = option(help="org/name[@revision] or folders", recorded=False)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Texts, one sample per line."""

    forget_text: str = option("data/forget.txt", "the forget set")
    retain_text: str = option("data/retain.txt", "the retain set")


@dataclass(frozen=True, kw_only=True)
class Texts(Splits):
    """Reading of texts."""

    max_samples: int = option(500, "samples per split; 0 = all", check=natural)
    max_length: int = option(512, "tokens per sample", check=positive)
    batch_size: int = option(16, "samples per pass", check=positive)
    keep_bos: bool = option(False, "count BOS positions as tokens")
    skip_first: int | None = option(
        None,
        "leave out the first N positions of a sample; auto (default): 1 where the base has an "
        "attention sink there",
        convert=_first_positions,
    )


@dataclass(frozen=True, kw_only=True)
class Device:
    """Compute."""

    device: str = option("auto", "auto (cuda, mps, cpu), or a torch device")
    memory: str | None = option(
        None,
        "GB to count with, such as 24,32 (device, main memory) or 32; none: what is free",
        convert=gigabytes,
        recorded=False,
    )


@dataclass(frozen=True, kw_only=True)
class Compute(Device):
    """Compute."""

    dtype: DTypeName = option(
        "auto", "of the computation; auto: bf16 on cuda, fp16 on mps, fp32 on cpu"
    )
    trust_remote_code: bool = option(False, "run code that a model repository brings along")


@dataclass(frozen=True, kw_only=True)
class Reading(Texts, Compute):
    """What a step is told that runs models over both splits."""


@dataclass(frozen=True, kw_only=True)
class Pass(Reading, Run):
    """Activation pass."""

    side_by_side: Literal["auto", "yes", "blocks", "no"] = option(
        "auto",
        "run all models together (yes), block by block in lockstep (blocks), or one after another "
        "against a disk cache of the base (no); auto: yes where they fit into memory, else blocks",
    )
    device_map: Literal["auto"] | None = option(
        None, "auto: spread a model that one device cannot hold over all devices"
    )
    cache_fp16: bool = option(False, "halve that cache; rounding shows in small differences")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures."""

    format: Format = option("png", "file format")
    title: str | None = option(None, "in place of the names of the models")
