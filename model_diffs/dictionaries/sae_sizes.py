"""Width, mean number of active features and trainer: what tells the SAEs of one layer apart."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

_WIDTH = re.compile(r"(?:^|[/_-])width_(\d+[km]?|\d+)(?![a-z\d])", re.IGNORECASE)
_L0 = re.compile(r"(?:^|[/_-])l0_([\w]+?)(?=$|[/_-])", re.IGNORECASE)
_TRAINER = re.compile(r"(?:^|/)trainer_([^/]+)")
_WIDTHS = ("d_sae", "num_latents", "dict_size")
_LETTERS = {"k": 1000, "m": 1_000_000}
Thing = TypeVar("Thing")


class Sizes(NamedTuple):
    """Of an SAE, or wanted of one; None is not known, or any."""

    width: str | None = None
    """Features: 16384 or 16k."""
    l0: str | None = None
    """Active features per token, or a word (small, medium, big)."""
    trainer: str | None = None

    def narrow(self, things: Sequence[Thing], of: Callable[[Thing], "Sizes"]) -> list[Thing]:
        """Those that are as wanted; with a number as `l0`, those that come nearest to it."""
        left = [
            one
            for one in things
            if (self.width is None or same_width(self.width, of(one).width))
            and (self.trainer is None or self.trainer == of(one).trainer)
        ]
        if self.l0 is None:
            return left
        wanted = _number(self.l0)
        if wanted is None:
            return [one for one in left if of(one).l0 == self.l0]
        numbers = {n for one in left if (n := _number(of(one).l0)) is not None}
        nearest = min(numbers, key=lambda n: (abs(n - wanted), n), default=None)
        return [one for one in left if nearest is not None and _number(of(one).l0) == nearest]

    @classmethod
    def differing(cls, every: Sequence["Sizes"]) -> dict[str, list[str]]:
        """By name, what there is of each that differs."""
        found: dict[str, list[str]] = {}
        for kind in cls._fields:
            values = {value for one in every if (value := getattr(one, kind)) is not None}
            if len(values) > 1:
                found[kind] = sorted(values, key=lambda v: (_number(v) is None, _number(v), v))
        return found


def _number(text: str | None) -> float | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text or "", re.IGNORECASE)
    return float(found[1]) * _LETTERS.get(found[2].lower(), 1) if found else None


def same_width(wanted: str, found: str | None) -> bool:
    """Whether two widths are one: 16k is 16384 (and 16000 to 16999)."""
    a, b = _number(wanted), _number(found)
    if a is None or b is None:
        return False
    for text, value, other in ((wanted, a, b), (found or "", b, a)):
        unit = _LETTERS.get(text[-1].lower())
        if unit:
            return value // unit == other // unit
    return a == b


def sizes_of(name: str, config: Mapping[str, Any]) -> Sizes:
    """What a checkpoint's folders and configuration say of it."""
    trainer = config.get("trainer")
    said = {**config, **(trainer if isinstance(trainer, dict) else {})}
    width = _first([*(said.get(key) for key in _WIDTHS), _match(_WIDTH, name)])
    l0 = _first([_match(_L0, name), said.get("k"), said.get("top_k")])
    return Sizes(width, l0, _match(_TRAINER, name))


def _match(pattern: re.Pattern[str], name: str) -> str | None:
    found = pattern.search(name)
    return found[1] if found else None


def _first(values: Iterable[Any]) -> str | None:
    """The first that is a number above 0 or a text."""
    for value in values:
        if value and isinstance(value, int | str) and not isinstance(value, bool):
            return str(value)
    return None
