"""The command line of both importance scripts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model_diffs.core.options import Compute, natural, option, positive, seedable
from model_diffs.data.text_sources import WIKITEXT
from model_diffs.models.architectures import SITES

_RANGE = re.compile(r"^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$")


def powers(text: str) -> tuple[float, ...]:
    """Powers separated by commas, each once. Raises ValueError for what is not above 0."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{text!r}: write a number or a list, 0.5,2") from error
    for power in found:
        positive(power)
    return tuple(dict.fromkeys(found))


def layer_list(text: str) -> tuple[int, ...] | None:
    """Layers from `0-23`, `0,5,10` or both mixed, sorted; None for `all`."""
    if text.strip().lower() == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        found = _RANGE.match(part)
        if found is None:
            raise ValueError(f"{text!r}: write layers as 0-23, 0,5,10 or 0-3,8")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"{part.strip()}: the range runs backwards")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def a_site(text: str) -> None:
    """Raise ValueError for what is no site."""
    if text not in (known := ("auto", "residual", *SITES)):
        raise ValueError(f"{text!r}: one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Model and texts."""

    model: str = option("Qwen/Qwen2.5-0.5B", "org/name[@revision] or a folder")
    dataset: str = option(WIKITEXT, "text file, folder or org/name[:config]")
    max_samples: int = option(500, "texts, a seeded sample; 0 = all", check=natural)
    max_length: int = option(128, "tokens per text", check=positive)
    batch_size: int = option(4, "texts per pass", check=positive)
    keep_bos: bool = option(False, "count BOS positions as tokens")
    skip_first: int = option(0, "leave out the first N positions of a text", check=natural)
    seed: int = option(42, "seed of the sample of texts", check=seedable)
    drop_repeated: bool = option(False, "read texts that are there several times once")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured."""

    layers: Sequence[int] | None = option(
        None, "0-23, 0,5,10, mixed, or all (default)", convert=layer_list
    )
    site: str = option(
        "auto",
        "where activations are read: auto (mlp_out, or where the SAEs were trained), residual, "
        + ", ".join(one for one in SITES if one != "mlp_in_before_gain"),
        check=a_site,
    )
    aggregate_by: Literal["values", "gradients"] = option(
        "values", "the activations, or the gradients of the loss with respect to them"
    )
    aggregation_mode: Literal["mean", "mean_abs", "both"] = option(
        "mean_abs", "mean over tokens, signed or of absolute values"
    )
    power: Sequence[float] | None = option(
        None, "raise the means to this power; a number or a list, 0.5,2", convert=powers
    )
    normalize_gradients: Literal["none", "sum_abs", "sum", "both"] = option(
        "sum_abs", "scale values or gradients so that Σ|v| or Σv is the number of dimensions"
    )

    @property
    def read_at(self) -> str:
        """The site, where nothing else decides it."""
        return "mlp_out" if self.site == "auto" else self.site


@dataclass(frozen=True, kw_only=True)
class Options(Reading, Measurement, Compute):
    """Output."""

    device_map: Literal["auto"] | None = option(
        None, "auto: spread a model that one device cannot hold over all devices"
    )
    save_outputs: bool = option(False, "write a folder of results")
    save_consolidated: str | None = option(None, "write all arrays to this .npz file", written=True)
    outroot: str = option("outputs", "folder of all results", recorded=False, written=True)
