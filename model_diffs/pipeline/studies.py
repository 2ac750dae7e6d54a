"""Studies: TOML files that say what is compared, on which texts, and with which settings.

Every table has a dataclass here; keys and types are checked against it, and arguments of scripts
against the script's own Options. Nothing in a study is ever evaluated.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import METHODS
from model_diffs.core.step import SCRIPTS
from model_diffs.pipeline.registered import Prediction, Worlds, of_world
from model_diffs.pipeline.typed import fill, table

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
    """That of the method's models unless said."""
    compare: bool = True
    """False: made by create_all_unlearning_models.sh, or since another entry is made like it."""
    arguments: Arguments = field(default_factory=dict)

    @property
    def like(self) -> str:
        """What its model is made like: the name of another entry, or a model."""
        return str(self.arguments.get("like", ""))


@dataclass(frozen=True)
class Dictionary:
    """`[dictionary]`: an ITDA dictionary of the base; other keys are options of `train_itda.py`."""

    folder: str
    arguments: Arguments = field(default_factory=dict)
    """None: the dictionary has to be there."""


@dataclass(frozen=True)
class Cluster:
    """`[cluster]`: what each job asks SLURM for; other keys are options of sbatch."""

    partition: str = ""
    account: str = ""
    time: int = 1440
    """Minutes."""
    cpus: int = 2
    gpus: int = 0
    """Of a unit of one process; one of several asks for as many of each as it has processes."""
    memory: int = 0
    """GB; 0: the cluster's default."""
    models_per_unit: int = 1
    """Models that one job measures: more share what is read of the base."""
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study as its file says it."""

    name: str
    path: Path
    make: tuple[str, ...] = ()
    """Scripts that make models and texts, run first, each with its options."""
    seeds: tuple[int, ...] = (42,)
    """Each unlearned model is made once per seed."""
    jobs: int = 1
    """Units that run at a time, at most one per core, unless --jobs says so."""
    device: str = ""
    """Of every script that has --device, unless the environment or --device says so."""
    threads: int = 0
    """Threads of each process (OMP_NUM_THREADS); 0: what the libraries choose."""
    models: Models = field(default_factory=Models)
    texts: Texts = field(default_factory=Texts)
    unlearn: tuple[Unlearn, ...] = ()
    dictionary: Dictionary | None = None
    steps: Mapping[str, Arguments] = field(default_factory=dict)
    """Options of a step by its number."""
    cluster: Cluster = field(default_factory=Cluster)
    worlds: Worlds | None = None
    prediction: Prediction = field(default_factory=Prediction)
    results: str = ""
    """Folder of the results under OUTROOT; empty: OUTROOT itself."""
    made_in: str = "./unlearned_models"
    """Folder of the models that `unlearn.py` makes."""

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

    def made_folder(self, name: str, seed: int) -> str:
        """Folder of the model of an entry and seed."""
        several = f"__seed{seed}" if len(self.seeds) > 1 else ""
        return f"{self.made_in}/{naming.model_label(self.base)}__{name}{several}"

    def made(self) -> dict[str, tuple[Unlearn, int]]:
        """Folder of each model that `unlearn.py` makes, with its entry and seed."""
        return {
            self.made_folder(one.name, seed): (one, seed)
            for one in self.unlearn
            for seed in self.seeds
        }


def with_likes(chosen: Iterable[Unlearn], known: Iterable[Unlearn]) -> tuple[Unlearn, ...]:
    """The chosen entries, each after the one that it is made like.

    One of `known` that was not chosen is added, not compared. Raises BadInput for a circle.
    """
    chosen = tuple(chosen)
    by_name = {one.name: one for one in (*(replace(one, compare=False) for one in known), *chosen)}
    found: dict[str, Unlearn] = {}

    def add(entry: Unlearn, followers: tuple[str, ...]) -> None:
        if entry.name in followers:
            raise BadInput(
                f"unlearn.{entry.name}: its `like` leads back to itself; name another entry"
            )
        if entry.like in by_name:
            add(by_name[entry.like], (*followers, entry.name))
        found.setdefault(entry.name, entry)

    for one in chosen:
        add(one, ())
    return tuple(found.values())


def entry_of(method: str) -> Unlearn:
    """An entry with the method's name and defaults."""
    return Unlearn(method, method, METHODS[method].role)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):  # a name that no file can have
        return False


def find_study(study: str, folder: Path = FOLDER) -> Path:
    """The file of a study: by its path, or by its name in `folder`."""
    path = Path(study)
    if not _holds(path.is_file):
        path = folder / f"{study.removesuffix('.toml')}.toml"
    if not _holds(path.is_file):
        if _holds(Path(study).is_dir):
            raise BadInput(f"{study}: a folder, not the file of a study")
        there = ", ".join(sorted(p.stem for p in folder.glob("*.toml"))) or "none"
        raise BadInput(f"{study}: no such study; there are: {there}")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _entry(name: str, given: Any, where: str) -> Unlearn:
    one: Unlearn = fill(Unlearn, given, f"{where}.", name=name)
    one = replace(one, method=one.method or name)
    if one.method not in METHODS:
        raise BadInput(f"{where}: {one.method} is no method; there are: {', '.join(METHODS)}")
    if "role" not in given:
        one = replace(one, role=METHODS[one.method].role)
    if name != naming.model_label(name) or "__" in name:
        raise BadInput(f"{where}: {name} is not a name for a folder")
    return one


def check(study: Study) -> Study:
    """The study, if it has a base and names no model twice. Raises BadInput."""
    if not study.base:
        raise BadInput(f"{study.path}: [models] names no base")
    named = [study.base, *(m for role in ROLES for m in getattr(study.models, role))]
    for key, least in (("jobs", 1), ("threads", 0)):
        if getattr(study, key) < least:
            raise BadInput(f"{study.path}: {key} = {getattr(study, key)}: at least {least}")
    for model in named:
        if named.count(model) > 1:
            raise BadInput(f"{study.path}: {model} is named twice in [models]")
    return study


def read_study(study: str, folder: Path = FOLDER, world: int | None = None) -> Study:
    """A study by its name in `folder`, or by its path; of one of its worlds, else of the first.

    Raises BadInput, with the key, for whatever is not as the dataclasses of this module say.
    """
    path = find_study(study, folder)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, nested without end
        raise BadInput(f"{path}: not a TOML file: {error}") from None
    if "worlds" in content:
        worlds: Worlds = fill(Worlds, content["worlds"], f"{path}: worlds.")
        content = of_world(content, worlds.development[0] if world is None else world)
    given: dict[str, Any] = {"name": path.stem, "path": path}
    entries = content.pop("unlearn", {})
    table(entries, f"{path}: unlearn")  # its keys are names and stay as they are
    steps = table(content.pop("steps", {}), f"{path}: steps")
    given["unlearn"] = tuple(
        _entry(name, entry, f"{path}: unlearn.{name}") for name, entry in entries.items()
    )
    given["steps"] = {
        number: table(options, f"{path}: steps.{number}") for number, options in steps.items()
    }
    return check(fill(Study, content, f"{path}: ", **given))
