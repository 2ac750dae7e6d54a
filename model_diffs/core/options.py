"""Options declared once: a dataclass is the configuration of a script and its command line.

    @dataclass(frozen=True, kw_only=True)
    class Options(Comparison, Compute):
        "Spectra"                                       # heading in --help
        tol: float = option(1e-3, "relative error of σ₁", check=positive)

A field without default is required. `Literal` types give choices, `tuple[T, ...]` takes several
words, `bool` is a switch (`bool | None`: --x, --no-x, or undecided). Standard library only.
"""

import argparse
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, NoReturn, TypeVar

T = TypeVar("T")
Format = Literal["png", "pdf", "svg"]
DTypeName = Literal["auto", "fp32", "fp16", "bf16"]

# Other spellings of a flag, accepted wherever the flag is; `_` is read as `-` in every flag.
ALIASES = {
    "forget_data": "forget_text",
    "retain_data": "retain_text",
    "model_name": "model",
    "models": "model",
    "base": "model_a",
    "num_samples": "max_samples",
}

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


def _finite(text: str) -> float:
    """A float; ValueError for NaN and infinities, which no option means."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


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


def recorded(options: Any) -> dict[str, Any]:
    """The options that decide a result, by name: what run.json keeps and compares."""
    return {
        one.name: getattr(options, one.name)
        for one in sorted(fields(options), key=lambda one: one.name)
        if one.metadata.get("recorded", True)
    }


# ── from the command line ─────────────────────────────────────────────────────────────────────────


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, (), ""):  # says nothing that the text does not
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def _first_positions(text: str) -> int | None:
    """`auto` is None."""
    if text == "auto":
        return None
    if not text.isdigit():
        raise ValueError(f"{text!r} is neither auto nor a number of positions")
    return int(text)


def flag(name: str) -> str:
    """The flag of a field: `max_samples` → `--max-samples`."""
    return "--" + name.replace("_", "-")


def _converter(one: Field[Any], kind: Any) -> Callable[[str], Any]:
    kind = _finite if kind is float else kind
    convert, check = one.metadata["convert"] or kind, one.metadata["check"]

    def read(text: str) -> Any:
        known = {int: "an integer", _finite: "a number"}.get(convert)
        reason = known and f"{text!r} is not {known}"
        try:
            value, reason = convert(text), None
            if check:
                check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(reason or str(error)) from None
        return value

    return read


def _add(group: Any, one: Field[Any], kind: Any) -> None:
    optional = isinstance(kind, types.UnionType)
    if optional:
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    # argparse formats help texts with %.
    given: dict[str, Any] = {"help": one.metadata["help"].replace("%", "%%")}
    given |= {"required": True} if one.default is MISSING else {"default": one.default}
    if kind is bool:
        given["action"] = argparse.BooleanOptionalAction if optional else "store_true"
    elif typing.get_origin(kind) is Literal:
        given["choices"] = list(typing.get_args(kind))
    else:
        if typing.get_origin(kind) is tuple:
            given["nargs"] = "+"
            given["action"] = "extend" if one.metadata["repeat"] else "store"
            kind = typing.get_args(kind)[0]
        given["type"] = _converter(one, kind)
    group.add_argument(flag(one.name), **given)


def _canonical(word: str, names: set[str]) -> str:
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    if name not in names and ALIASES.get(name) in names:
        name = ALIASES[name]
    return flag(name) + equals + value


def parse(kind: type[T], argv: Sequence[str] | None, description: str | None) -> T:
    """An instance of the options dataclass `kind` from command-line words (None: `sys.argv`).

    Wrong words end the process with status 2 and one line on stderr.
    """
    parser = _Parser(description=description, formatter_class=_Help, allow_abbrev=False)
    hints, groups = typing.get_type_hints(kind), {}
    for one in fields(kind):  # type: ignore[arg-type]
        owner = next(base for base in kind.__mro__ if one.name in inspect.get_annotations(base))
        title = (owner.__doc__ or "Options").strip().partition("\n")[0].rstrip(".")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], one, hints[one.name])
    words = sys.argv[1:] if argv is None else argv
    found = vars(parser.parse_args([_canonical(word, set(hints)) for word in words]))
    # argparse collects lists; options are immutable.
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


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
