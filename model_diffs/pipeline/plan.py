"""The plan of a study: which scripts run, on which models, with which options.

It knows studies and the declarations (STEP) of the scripts beside `pipeline.sh`; only what makes
models, texts, dictionaries and the report is known by name.
"""

import itertools
import shlex
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from model_diffs.core import naming, options
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import METHODS
from model_diffs.core.step import Script
from model_diffs.pipeline.environment import Settings
from model_diffs.pipeline.studies import Arguments, Study, with_likes
from model_diffs.pipeline.typed import typed, unknown
from model_diffs.pipeline.units import DATASETS, REPORT, TRAIN, UNLEARN, Unit

# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def _words(script: Script, arguments: Arguments, where: str) -> list[str]:
    """Options of a script as command-line words, checked against its Options."""
    hints = typing.get_type_hints(script.module.Options)
    words: list[str] = []
    for name, given in arguments.items():
        fields = script.module.Options.__dataclass_fields__
        if name not in fields:
            raise unknown(options.flag(name)[2:], [options.flag(n)[2:] for n in fields], where)
        value = typed(hints[name], given, f"{where}.{name.replace('_', '-')}")
        if isinstance(value, bool):
            words += [options.flag(name)] if value else []
        elif isinstance(value, tuple):
            words += [options.flag(name), *map(str, value)]
        else:
            words += [options.flag(name), str(value)]
    return words


def _shared(script: Script, study: Study, settings: Settings) -> dict[str, Any]:
    """What the study says that this script has an option for."""
    of_texts = bool({"forget", "retain"} & set(script.step.needs))
    says: dict[str, Any] = {
        "outroot": settings.outroot,
        "forget_text": study.texts.forget,
        "retain_text": study.texts.retain,
        "questions": study.texts.questions,
        "attack_data": study.texts.attack,
        "max_samples": study.texts.max_samples,
        "device": settings.activation_device if of_texts else settings.param_device,
        "dtype": settings.activation_dtype if of_texts else settings.param_dtype,
        "memory": settings.memory,
        "itda": study.dictionary.folder if study.dictionary else None,
        "dataset": (study.texts.forget, study.texts.retain),
    }
    return {name: value for name, value in says.items() if value and script.accepts(name)}


def _placed(script: Script, settings: Settings) -> dict[str, Any]:
    """Where a script runs that makes models: it records the device, so that only one that is named
    is passed on."""
    named = {"device": settings.activation_device, "memory": settings.memory}
    return {n: v for n, v in named.items() if v not in ("", "auto") and script.accepts(n)}


# ── units ─────────────────────────────────────────────────────────────────────────────────────────


class Planner:
    """Makes the units of a study from the scripts that are there."""

    def __init__(self, study: Study, settings: Settings, scripts: Sequence[Script]) -> None:
        self.study = study
        self.settings = settings
        self.scripts = {one.name: one for one in scripts}
        self.changed = dict(study.roles)
        self.harmless: list[str] = []
        """Controls that training made: only texts that nothing is to forget can have done it."""
        for folder, (entry, _) in study.made().items():
            if entry.compare:
                self.changed[folder] = entry.role
                if entry.role == "control" and METHODS[entry.method].making == "trained":
                    self.harmless.append(naming.model_label(folder))
        for number in study.steps:
            if not any(str(one.step.number) == number for one in scripts):
                raise BadInput(f"{study.path}: steps.{number}: there is no step of that number")

    def _script(self, name: str) -> Script:
        if name not in self.scripts:
            raise BadInput(f"{name}: no such script, or one without STEP")
        return self.scripts[name]

    def _extra(self, script: Script) -> Arguments:
        """`[steps.N]`: each option must be one of some script of that number."""
        number = str(script.step.number)
        given = self.study.steps.get(number, {})
        siblings = [one for one in self.scripts.values() if str(one.step.number) == number]
        for name in given:
            known = [n for one in siblings for n in one.module.Options.__dataclass_fields__]
            if name not in known:
                raise unknown(name, known, f"{self.study.path}: steps.{number}")
        return {name: value for name, value in given.items() if script.accepts(name)}

    def _lacks(self, script: Script) -> bool:
        """Whether the script has to have questions or attack texts, and the study has none."""
        had = {"questions": self.study.texts.questions, "attack_data": self.study.texts.attack}
        every = script.module.Options.__dataclass_fields__
        return any(
            name in every and every[name].default is MISSING and not value
            for name, value in had.items()
        )

    def _unit(self, script: Script, given: Arguments, name: str = "", **extra: Any) -> Unit:
        shared = _placed(script, self.settings)
        if script.name != UNLEARN:
            shared = _shared(script, self.study, self.settings)
        shared |= extra
        words = _words(script, shared, script.name) + _words(
            script, given, f"{self.study.path}: {name or f'steps.{script.step.number}'}"
        )
        return Unit(
            script, words, name=script.name.removesuffix(".py") + (f"_{name}" if name else "")
        )

    def make(self) -> Iterator[Unit]:
        """What makes texts and models: scripts of the study, the published texts, unlearning."""
        texts = self.study.texts
        for number, line in enumerate(self.study.make, 1):
            name, *own = shlex.split(line.replace("{base}", self.study.base))
            script, part = self._script(name), f".{number}" if len(self.study.make) > 1 else ""
            words = [*own, *_words(script, _placed(script, self.settings), name)]
            yield Unit(script, words, name=name.removesuffix(".py") + part)
        # Texts of one's own are left alone; those drawn before are brought up to date.
        if (texts.forget, texts.retain) == ("data/forget.txt", "data/retain.txt"):
            there = Path(texts.forget).is_file() and Path(texts.retain).is_file()
            if Path("data/.datasets").is_dir() or not there:
                yield self._unit(self._script(DATASETS), {})

    def unlearn(self, every: bool = False) -> Iterator[Unit]:
        """A unit per model that is compared or that such a one is made like; with `every`, of all.

        What a model is made like comes first: its folder of the same seed is passed on.
        """
        given = {"forget_text": self.study.texts.forget, "retain_text": self.study.texts.retain}
        if self.study.questions:
            given["questions"] = self.study.questions
        entries = self.study.unlearn
        names = {entry.name for entry in entries}
        chosen = with_likes((one for one in entries if one.compare or every), entries)
        for entry, seed in itertools.product(chosen, self.study.seeds):
            folder = self.study.made_folder(entry.name, seed)
            name = folder.rpartition("/")[2].partition("__")[2]
            model = {"model": self.study.base, "method": entry.method, "seed": seed}
            arguments = dict(entry.arguments)
            if entry.like in names:
                arguments["like"] = self.study.made_folder(entry.like, seed)
            yield self._unit(
                self._script(UNLEARN),
                arguments,
                name=f"unlearn.{name}",
                **model,
                outdir=folder,
                **given,
            )

    def steps(self) -> Iterator[Unit]:
        """The diagnostics and attacks, in the order of their numbers; the report last."""
        dictionary = self.study.dictionary
        for script in self.scripts.values():
            step = script.step
            if step.scope == "other" or script.name == REPORT or self._lacks(script):
                continue
            asked_for = "dictionary" in step.needs or str(step.number) in self.study.steps
            if step.optional and not asked_for:
                continue
            if "dictionary" in step.needs:
                if dictionary is None:
                    continue
                if dictionary.arguments:
                    trained = {"model": self.study.base, "outdir": dictionary.folder}
                    yield self._unit(
                        self._script(TRAIN), dictionary.arguments, name="dictionary", **trained
                    )
            models: dict[str, Any] = {"model_a": self.study.base, "model_b": tuple(self.changed)}
            if step.scope == "model":
                models = {"model": (self.study.base, *self.changed)}
            if script.accepts("base"):
                models["base"] = self.study.base
            if script.accepts("filtered") and self.study.models.filtered:
                models["filtered"] = self.study.models.filtered[0]
            yield self._unit(script, self._extra(script), **models)
        if REPORT in self.scripts:
            report = self._script(REPORT)
            named: dict[str, Any] = {"model_a": self.study.base, "model_b": tuple(self.changed)}
            for role in ("filtered", "control"):
                labels = [naming.model_label(m) for m, r in self.changed.items() if r == role]
                if labels and report.accepts(role):
                    named[role] = tuple(labels) if role == "control" else labels[0]
            if self.harmless and report.accepts("harmless"):
                named["harmless"] = tuple(self.harmless)
            yield self._unit(report, self._extra(report), **named)
