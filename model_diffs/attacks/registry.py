"""The eliciting attacks that there are: one file each in `eliciting/`, found by its name.

A file declares what it is and makes the attack:

    ATTACK = Declaration(says="…", source="…", strengths=("8bit",), pattern="[0-9]+bit")

    @contextmanager
    def attacked(victim: Victim, strength: str) -> Iterator[Opened]: ...

Standard library only: options are checked with the names, without importing an attack.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core.errors import BadInput

if TYPE_CHECKING:
    from model_diffs.attacks.victim import Opened, Victim

PACKAGE = f"{__package__}.eliciting"
FOLDER = Path(__file__).parent / "eliciting"
ALL = "all"
DEFAULT = ("direction", "interpolate", "quantise", "few_shot", "lens")


class Range(NamedTuple):
    """Strengths between two numbers, for the search of the worst case."""

    low: float
    high: float
    written: str
    """The strength of a number, for `format`: `k{:.0f}`."""
    logarithmic: bool = False


@dataclass(frozen=True)
class Declaration:
    """What an attack is."""

    says: str
    """One sentence: what is done."""
    source: str
    """Author and year; empty where there is none."""
    strengths: "Sequence[str] | Callable[[Victim], Sequence[str]]"
    """Tried by default, the mildest first; or those of a model."""
    pattern: str
    """Of every strength that there may be: a regular expression."""
    reads: tuple[str, ...] = ()
    """What it needs beside the model and questions: `base`, `texts`. An attacker who has the base's
    weights has what they know, so that nothing is elicited with them."""
    trains: bool = False
    """Trains something beside the model, so that it may teach."""
    smallest: bool = False
    """Picked is the smallest reversal that restores half of the gap to the base, not the strength
    with the highest accuracy."""
    range: Range | None = None

    def said(self) -> dict[str, Any]:
        """For run.json: what was done, from where, with what."""
        return {name: getattr(self, name) for name in ("says", "source", "reads", "trains")}


class Attack(NamedTuple):
    """An attack, loaded."""

    name: str
    declaration: Declaration
    attacked: "Callable[[Victim, str], AbstractContextManager[Opened]]"
    """The victim under the attack at a strength; as it was when the context ends."""

    def strengths(self, victim: "Victim", chosen: "Strengths") -> tuple[str, ...]:
        """Those chosen for it, else its own."""
        own = self.declaration.strengths
        return chosen.get(self.name) or tuple(own(victim) if callable(own) else own)


Strengths = dict[str, tuple[str, ...]]
"""By attack, where they are not the attack's own."""


def names() -> list[str]:
    """Every attack's name, in alphabetical order."""
    return sorted(one.name for one in pkgutil.iter_modules([str(FOLDER)]))


def known(name: str) -> None:
    """Raise ValueError, naming those there are, for what is neither an attack nor `all`."""
    if name not in (ALL, *names()):
        raise ValueError(f"{name!r} is no attack; there are: {', '.join(names())}, {ALL}")


def load(name: str) -> Attack:
    """An attack by its name."""
    module: Any = importlib.import_module(f"{PACKAGE}.{name}")
    return Attack(name, module.ATTACK, module.attacked)


def chosen(attacks: Iterable[str]) -> list[Attack]:
    """The attacks of these names, each once; every one for `all`."""
    asked = [*attacks]
    return [load(name) for name in (names() if ALL in asked else dict.fromkeys(asked))]


def read_strengths(words: Iterable[str], attacks: Iterable[Attack]) -> Strengths:
    """`quantise=8bit,nf4` and the like as strengths by attack. BadInput, naming the word, where the
    attack is not among those chosen or has no such strength."""
    by_name, found = {one.name: one.declaration for one in attacks}, Strengths()
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or name not in by_name:
            raise BadInput(f"--strengths {word}: write ATTACK=A,B with one of {', '.join(by_name)}")
        found[name] = tuple(dict.fromkeys(values.split(",")))
        pattern = by_name[name].pattern
        for strength in found[name]:
            if not re.fullmatch(pattern, strength):
                raise BadInput(f"--strengths {word}: {strength!r} is not of the form {pattern}")
    return found
