"""Step 0. What does an intervention change in a model that was really trained? Makes such a study.

SmolLM2-135M-Instruct, which an ordinary package brings along, is asked for the capitals of the
world and for other facts about the same countries. What it answers rightly in two forms becomes
texts to forget (Africa) and to keep, texts of an attacker, harmless texts, and questions in words
that no text uses. With --invented, two copies of the model are taught on facts about countries that
do not exist, told truly to one and with values dealt anew to the other.

    uv run create_capitals.py
    uv run create_capitals.py --model org/name --data-dir data/other --forget Asia Oceania
    uv run create_capitals.py --invented

Outputs: models/smollm2-135m-instruct/ (unless --model names another); data/capitals/ (forget.txt,
retain.txt, texts of each fold, benign texts, questions.jsonl); with --invented data/invented/ and
models/invented-{base,filtered}/. Needs the extra capitals.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from model_diffs.core import results, step
from model_diffs.core.options import Compute, option, recorded
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import run_stages, run_step, seed_everything
from model_diffs.core.step import Step
from model_diffs.countries.recipe import Teaching

STEP = Step(
    number=0,
    folder="capitals",
    question="What does an intervention change in a model that was really trained?",
    memory="model_diffs.countries.memory:ASKED",
    scope="other",
    version=2,  # other invented facts and corpora; questions are marked as of unseen form
)
OWN = "./models/smollm2-135m-instruct"


def _continent(name: str) -> None:
    from model_diffs.countries.facts import CONTINENTS

    if name not in CONTINENTS:
        raise ValueError(f"no continent {name!r}; there are {', '.join(CONTINENTS)}")


@dataclass(frozen=True, kw_only=True)
class Options(Teaching, Compute):
    """Model and texts."""

    model: str = option(
        OWN, "the model that is asked; the default is imported first", recorded=False, written=True
    )
    forget: tuple[str, ...] = option(
        ("Africa",), "continents whose capitals are to be forgotten", check=_continent
    )
    invented: bool = option(False, "teach invented facts instead", recorded=False)
    data_dir: str | None = option(
        None, "folder of the texts (default: data/capitals or data/invented)", written=True
    )
    models_dir: str = option("models", "folder of taught models", recorded=False, written=True)
    force: bool = option(False, "make again what is complete", recorded=False)


def data_folder(options: Options) -> Path:
    """Where the texts go."""
    return Path(options.data_dir or f"data/{'invented' if options.invented else 'capitals'}")


def planned_runs(options: Options) -> list[PlannedRun]:
    """The imported model, the texts, and with --invented the two taught models."""
    planned = []
    if options.model == OWN:
        planned.append(PlannedRun(Path(OWN), "model", {"file": "SmolLM2-135M-Instruct"}))
    given = {**recorded(options), "model": options.model}
    given = {name: given[name] for name in ("forget", "seed", "world_seed", "dtype", "model")}
    kind = "invented" if options.invented else "capitals"
    texts = {**given, "kind": kind}
    planned.append(PlannedRun(data_folder(options), f"texts of {kind}", texts, options.model))
    for which in ("base", "filtered") if options.invented else ():
        taught = {**recorded(options), "model": options.model, "corpus": which}
        folder = Path(options.models_dir, f"invented-{which}")
        planned.append(PlannedRun(folder, folder.name, taught, options.model))
    return planned


def import_model(todo: list[PlannedRun], options: Options) -> None:
    """The model of the package as an ordinary folder."""
    from model_diffs.countries import smollm2
    from model_diffs.models import gguf

    file = smollm2.weights()
    gguf.check(file)
    with results.open_run(todo[0]) as run:
        gguf.write(file, run)


def make_texts(todo: list[PlannedRun], options: Options) -> None:
    """Ask the model what it knows, and write texts and questions."""
    from model_diffs.countries import making

    seed_everything(options.seed)
    write = making.write_invented if options.invented else making.write_capitals
    seed = options.world_seed if options.invented else options.seed
    with results.open_run(todo[0]) as run:
        write(options, seed, options.model, options.forget, run)


def teach_models(todo: list[PlannedRun], options: Options) -> None:
    """Teach the copies side by side, a process each."""
    from model_diffs.countries import teaching

    teaching.teach_all(todo, options, options.model, data_folder(options), options.device)


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Import the model, ask it, teach its copies: what a stage makes, the next ones read."""
    every = step.planned_runs(sys.modules[__name__], options)
    models = [one for one in every if one.label.startswith("invented-")]
    imported = [one for one in every if one.label == "model"]
    texts = [one for one in every if one not in (*models, *imported)]
    run_stages(
        (import_model, imported),
        (make_texts, texts),
        (teach_models, models),
        chosen=options,
        todo=todo,
    )


if __name__ == "__main__":
    run_step(__name__)
