"""Studies: TOML files that say what is compared, on which texts, and with which settings.

Every table has a dataclass here; keys and types are checked against it, and arguments of scripts
against the script's own Options. Nothing in a study is ever evaluated.
"""

import difflib
import os
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import METHODS
from model_diffs.core.step import SCRIPTS

FOLDER = SCRIPTS / "studies"
Arguments = Mapping[str, Any]
Role = Literal["filtered", "control", "unlearned"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Models:
    """`[models]`: model ids or folders, by role."""

    base: str = ""
    filtered: tuple[str, ...] = ()
    """Never learned what the others were made to forget."""
    control: tuple[str, ...] = ()
    """Changed as strongly, to no such end."""
    unlearned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Texts:
    """`[texts]`: files, one sample per line; questions are JSONL."""

    forget: str = "data/forget.txt"
    retain: str = "data/retain.txt"
    questions: str | None = None
    attack: str | None = None
    max_samples: int = 500


@dataclass(frozen=True)
class Unlearn:
    """`[unlearn.NAME]`: a model made from the base by `unlearn.py`; other keys are its options."""

    name: str
    method: str = ""
    """The entry's name unless said."""
    role: Role = "unlearned"
    compare: bool = True
    """False: made by create_all_unlearning_models.sh alone."""
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Dictionary:
    """`[dictionary]`: an ITDA dictionary of the base; other keys are options of `train_itda.py`."""

    folder: str
    arguments: Arguments = field(default_factory=dict)
    """None: the dictionary has to be there."""


@dataclass(frozen=True)
class Study:
    """A study as its file says it."""

    name: str
    path: Path
    make: tuple[str, ...] = ()
    """Scripts that make models and texts, run first."""
    seeds: tuple[int, ...] = (42,)
    """Each unlearned model is made once per seed."""
    models: Models = field(default_factory=Models)
    texts: Texts = field(default_factory=Texts)
    unlearn: tuple[Unlearn, ...] = ()
    dictionary: Dictionary | None = None
    steps: Mapping[str, Arguments] = field(default_factory=dict)
    """Options of a step by its number."""

    @property
    def base(self) -> str:
        """The base model."""
        return self.models.base

    @property
    def roles(self) -> dict[str, Role]:
        """Every model compared with the base that `unlearn.py` does not make, with its role."""
        return {model: role for role in ROLES for model in getattr(self.models, role)}

    @property
    def compare(self) -> tuple[str, ...]:
        """Those models."""
        return tuple(self.roles)

    @property
    def forget_text(self) -> str:
        """File of the forget set."""
        return self.texts.forget

    @property
    def retain_text(self) -> str:
        """File of the retain set."""
        return self.texts.retain

    @property
    def questions(self) -> str | None:
        """File of the questions."""
        return self.texts.questions

    def made(self) -> dict[str, tuple[Unlearn, int]]:
        """Folder of each model that `unlearn.py` makes, with its entry and seed."""
        label = naming.model_label(self.base)
        several = len(self.seeds) > 1
        return {
            f"./unlearned_models/{label}__{one.name}" + (f"__seed{seed}" if several else ""): (
                one,
                seed,
            )
            for one in self.unlearn
            for seed in self.seeds
        }


# ── types ─────────────────────────────────────────────────────────────────────────────────────────

_WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


def typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`: lists become tuples, tables dataclasses.

    Raises BadInput that names `where`.
    """
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if is_dataclass(kind):
        return _fill(kind, value, where)
    if get_origin(kind) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(typed(get_args(kind)[0], one, where) for one in values)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise BadInput(f"{where} = {value!r}: one of {', '.join(map(str, get_args(kind)))}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BadInput(f"{where} = {value!r}: not {_WORDS[kind]}")
    # A value becomes one word of a command and one field of a plan.
    if kind is str and (not value.strip() or any(c in value for c in "\t\n\r\0")):
        raise BadInput(f"{where} = {value!r}: empty, or with a tab or line break")
    return value


def unknown(key: str, known: Iterable[str], where: str) -> BadInput:
    """The refusal of a key, with the nearest known one."""
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    return BadInput(f"{where}: unknown key {key}; {hint}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{where} = {value!r}: not a table")
    return {key.replace("-", "_"): one for key, one in value.items()}


def _fill(kind: Any, table: Any, where: str, **given: Any) -> Any:
    """A dataclass from a TOML table. Keys that it lacks become its `arguments`, if it has these."""
    hints = typing.get_type_hints(kind)
    known = [name for name in hints if name not in (*given, "arguments")]
    others: dict[str, Any] = {}
    for key, value in _table(table, where).items():
        if key in known:
            given[key] = typed(hints[key], value, f"{where}.{key}")
        elif "arguments" in hints:
            others[key] = value
        else:
            raise unknown(key, known, where)
    return kind(**given, **({"arguments": others} if "arguments" in hints else {}))


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def find_study(study: str, folder: Path = FOLDER) -> Path:
    """The file of a study: by its path, or by its name in `folder`."""
    path = Path(study)
    if not path.is_file():
        path = folder / f"{study.removesuffix('.toml')}.toml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.toml"))) or "none"
        raise BadInput(f"{study}: no such study; there are: {there}")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _entry(name: str, table: Any, where: str) -> Unlearn:
    one: Unlearn = _fill(Unlearn, table, where, name=name)
    one = replace(one, method=one.method or name)
    if one.method not in METHODS:
        raise BadInput(f"{where}: {one.method} is no method; there are: {', '.join(METHODS)}")
    if name != naming.model_label(name) or "__" in name:
        raise BadInput(f"{where}: {name} is not a name for a folder")
    return one


def _check(study: Study) -> Study:
    if not study.base:
        raise BadInput(f"{study.path}: [models] names no base")
    named = [study.base, *(m for role in ROLES for m in getattr(study.models, role))]
    for model in named:
        if named.count(model) > 1:
            raise BadInput(f"{study.path}: {model} is named twice in [models]")
    return study


def read_study(study: str, folder: Path = FOLDER) -> Study:
    """A study by its name in `folder`, or by its path.

    Raises BadInput, with the key, for whatever is not as the dataclasses of this module say.
    """
    path = find_study(study, folder)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a TOML file: {error}") from None
    given: dict[str, Any] = {"name": path.stem, "path": path}
    entries = content.pop("unlearn", {})
    _table(entries, f"{path}: unlearn")  # its keys are names and stay as they are
    steps = _table(content.pop("steps", {}), f"{path}: steps")
    given["unlearn"] = tuple(
        _entry(name, table, f"{path}: unlearn.{name}") for name, table in entries.items()
    )
    given["steps"] = {
        number: _table(table, f"{path}: steps.{number}") for number, table in steps.items()
    }
    return _check(_fill(Study, content, str(path), **given))


# ── what the environment says instead ─────────────────────────────────────────────────────────────


def _models_given(models: Models, words: list[str]) -> Models:
    """COMPARE: models, each with its role before `=` or with the one that the study gives it."""
    roles = {model: role for role in ROLES for model in getattr(models, role)}
    found: dict[str, list[str]] = {role: [] for role in ROLES}
    for word in words:
        role, equals, model = word.partition("=")
        if not equals or role not in ROLES:
            role, model = roles.get(word, "unlearned"), word
        found[role].append(model)
    return Models(models.base, **{role: tuple(named) for role, named in found.items()})


def _entries_given(entries: tuple[Unlearn, ...], names: list[str]) -> tuple[Unlearn, ...]:
    """UNLEARN: entries of the study by name, or methods with their defaults."""
    known = {one.name: one for one in entries}
    for name in names:
        if name not in known and name not in METHODS:
            raise BadInput(
                f"UNLEARN: {name} is neither an entry of the study nor a method; there are: "
                f"{', '.join(dict.fromkeys([*known, *METHODS]))}"
            )
    return tuple(
        replace(known.get(name, Unlearn(name, name)), compare=True) for name in dict.fromkeys(names)
    )


def with_environment(study: Study, environment: Mapping[str, str] = os.environ) -> Study:
    """The study with what BASE, COMPARE, UNLEARN and the like say instead."""
    says = {key: value for key, value in environment.items() if key.isupper()}

    def integer(key: str, text: str) -> int:
        if not text.isdecimal():
            raise BadInput(f"{key}={text}: not an integer of at least 0")
        return int(text)

    models, texts = study.models, study.texts
    if "COMPARE" in says:
        models = _models_given(models, says["COMPARE"].split())
    if says.get("BASE"):
        models = replace(models, base=says["BASE"])
    texts = replace(
        texts,
        forget=says.get("FORGET_TEXT") or texts.forget,
        retain=says.get("RETAIN_TEXT") or texts.retain,
        questions=says.get("QUESTIONS", texts.questions or "") or None,
        attack=says.get("ATTACK_TEXT", texts.attack or "") or None,
    )
    if says.get("MAX_SAMPLES"):
        texts = replace(texts, max_samples=integer("MAX_SAMPLES", says["MAX_SAMPLES"]))
    study = replace(study, models=models, texts=texts)
    if "UNLEARN" in says:
        study = replace(study, unlearn=_entries_given(study.unlearn, says["UNLEARN"].split()))
    if says.get("UNLEARN_SEEDS"):
        seeds = [integer("UNLEARN_SEEDS", word) for word in says["UNLEARN_SEEDS"].split()]
        study = replace(study, seeds=tuple(dict.fromkeys(seeds)))
    if "DICTIONARY" in says:
        # Another dictionary than the study's has to be there already.
        own = study.dictionary
        given = says["DICTIONARY"]
        same = own if own and own.folder == given else Dictionary(given)
        study = replace(study, dictionary=same if given else None)
    return _check(study)


def with_all_methods(study: Study, environment: Mapping[str, str]) -> Study:
    """The study with a model per method, METHODS naming some: its own entries, else defaults."""
    names = environment.get("METHODS", "").split() or list(METHODS)
    entries = {one.name: one for one in study.unlearn}
    for name in names:
        if name not in entries and name not in METHODS:
            raise BadInput(f"METHODS: {name} is no method; there are: {', '.join(METHODS)}")
    return replace(study, unlearn=tuple(entries.get(n, Unlearn(n, n)) for n in names))
