"""What the environment says in place of a study: BASE, COMPARE, UNLEARN, OUTROOT, LAUNCHER, …

Values are read, never evaluated.
"""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model_diffs.core.errors import BadInput
from model_diffs.core.methods import METHODS, UNLEARNING
from model_diffs.core.options import gigabytes
from model_diffs.pipeline.studies import (
    ROLES,
    Dictionary,
    Models,
    Study,
    Unlearn,
    check,
    entry_of,
    with_likes,
)


def search_path() -> str:
    """PATH for children: programs of this environment (`python`, `accelerate`) come first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def program(name: str) -> str:
    """The file of a launcher's program. Raises BadInput where there is none."""
    found = sys.executable if name == "python" else shutil.which(name, path=search_path())
    if not found:
        raise BadInput(f"LAUNCHER={name}: no such program")
    return found


SECRETS = {"HF_TOKEN", "WANDB_API_KEY"}


def forget_secrets(file: str = ".env") -> None:
    """Take the secrets that `.env` gave out of the environment, which SLURM keeps in its files.

    Jobs read `.env` themselves.
    """
    from dotenv import dotenv_values

    for name in SECRETS & dotenv_values(file).keys():
        os.environ.pop(name, None)


def cpu_cores() -> int:
    """The cores that this process may use."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, else all that the driver lists."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(one.strip() for one in named.split(",") if one.strip())
    if not shutil.which("nvidia-smi"):
        return ()
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    lines = found.stdout.splitlines() if found.returncode == 0 else []
    return tuple(str(number) for number, _ in enumerate(filter(str.strip, lines)))


@dataclass
class Settings:
    """What the environment decides beside the study."""

    outroot: str = "outputs"
    launcher: Sequence[str] = ("python",)
    param_device: str = "auto"
    param_dtype: str = "auto"
    activation_device: str = "auto"
    activation_dtype: str = "auto"
    memory: str = ""
    """What scripts count with (`--memory`); empty: what is free."""

    def on(self, device: str) -> "Settings":
        """With this device wherever no other is named."""
        if not device:
            return self
        named = {name: getattr(self, name) for name in ("param_device", "activation_device")}
        return replace(self, **{n: device for n, own in named.items() if own == "auto"})

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Settings":
        """From OUTROOT, LAUNCHER, PARAM_DEVICE and the like; empty ones count as not set."""
        given = {one.name: environment.get(one.name.upper()) for one in dataclasses.fields(cls)}
        found = cls(**{name: value for name, value in given.items() if value})
        if found.memory:
            try:
                gigabytes(found.memory)
            except ValueError as error:
                raise BadInput(f"MEMORY={found.memory}: {error}") from None
        if isinstance(found.launcher, str):
            try:
                found.launcher = shlex.split(found.launcher) or cls.launcher
            except ValueError as error:
                raise BadInput(f"LAUNCHER={found.launcher}: {error}") from None
            program(found.launcher[0])
        return found


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
    chosen = [known[name] if name in known else entry_of(name) for name in dict.fromkeys(names)]
    return with_likes([replace(one, compare=True) for one in chosen], entries)


def with_environment(study: Study, environment: Mapping[str, str] = os.environ) -> Study:
    """The study with what BASE, COMPARE, UNLEARN and the like say instead."""
    says = {key: value for key, value in environment.items() if key.isupper()}

    def integer(key: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise BadInput(f"{key}={text}: not an integer of at least 0, or a very large one")
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
    return check(study)


def with_all_methods(study: Study, environment: Mapping[str, str]) -> Study:
    """The study with a model per method that unlearns, or those that METHODS names.

    They are the study's own entries, else the methods' defaults.
    """
    names = environment.get("METHODS", "").split() or UNLEARNING
    entries = {one.name: one for one in study.unlearn}
    for name in names:
        if name not in entries and name not in METHODS:
            raise BadInput(f"METHODS: {name} is no method; there are: {', '.join(METHODS)}")
    chosen = [entries[name] if name in entries else entry_of(name) for name in names]
    return replace(study, unlearn=with_likes(chosen, study.unlearn))
