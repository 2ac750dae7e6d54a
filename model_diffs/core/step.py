"""The declaration that a step makes of itself; pipeline, report, README and docs read it there.

    STEP = Step(
        number=8,
        folder="activation_separation",
        question="Does the model tell forget from retain texts more, or less?",
        needs=("forget", "retain"),
        tables=(Table("separation_metrics"), Table("separation_changes")),
        figures=(Figure("activation_separation_analysis", "Separation", axis="function"),),
        measures=(Measure("separation_change", axis="function", ...),),
    )

Standard library only: all scripts are read in one process before anything runs.
"""

import importlib.util
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from model_diffs.core import naming, options
from model_diffs.core.errors import BadInput
from model_diffs.core.measure import Claims as Claims
from model_diffs.core.measure import Layers as Layers
from model_diffs.core.measure import Measure as Measure
from model_diffs.core.results import PlannedRun

Scope = Literal["comparison", "model", "study", "other"]


@dataclass(frozen=True)
class Table:
    """A CSV that a step writes."""

    name: str
    """Without `.csv`."""


@dataclass(frozen=True)
class Figure:
    """A figure that a step draws and, where it names an axis, the report shows."""

    name: str
    """Without its ending."""
    caption: str
    axis: str = ""
    """Section of the report; empty: not shown there."""


@dataclass(frozen=True)
class Step:
    """What a script is to the pipeline and to the report."""

    number: int
    folder: str
    """Folder of its results under a comparison's, a model's or the study's; `{base}` stands for
    the label of the base."""
    question: str
    """What it asks, in one sentence."""
    scope: Scope = "comparison"
    """Whose folder it fills: of each comparison, of each model, one of the whole study, or of its
    own kind (`other`: the plan knows when it runs)."""
    needs: tuple[str, ...] = ()
    """What it reads beside models: `forget`, `retain`, `questions`, `attack`, `dictionary`."""
    reads: tuple[str, ...] = ()
    """Folders of steps whose results it reads, so that it waits for them."""
    processes: bool = False
    """May run on several processes (`LAUNCHER`)."""
    summary: bool = False
    """It also fills one folder for the whole study, `<outroot>/<folder>`."""
    optional: bool = False
    """A study may do without: the report does not miss it."""
    memory: str = ""
    """Its footprint (`core.memory`), as `module:NAME`; empty: it loads no model."""
    version: int = 1
    """Raised when the step's numbers change: older results are stale."""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    measures: tuple[Measure, ...] = ()


# ── scripts ───────────────────────────────────────────────────────────────────────────────────────

SCRIPTS = Path(__file__).parents[2]
"""Folder of the scripts: the repository."""


class Script(NamedTuple):
    """A step's script, loaded."""

    name: str
    """File name."""
    module: ModuleType
    """With `STEP`, `Options`, `main(options, todo)` and, where it plans for itself,
    `planned_runs(options)`."""

    @property
    def step(self) -> Step:
        return self.module.STEP

    def accepts(self, name: str) -> bool:
        """Whether its Options have the field `name`."""
        return name in self.module.Options.__dataclass_fields__


def load_script(path: Path) -> ModuleType:
    """Import a top-level script by its path. Scripts import only light modules at their top."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BadInput(f"{path}: no such script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def load_steps(folder: Path = SCRIPTS) -> list[Script]:
    """Every script in `folder` that declares a STEP, by number, then by name."""
    found = []
    for path in sorted(folder.glob("*.py")):
        if "\nSTEP = Step(" in path.read_text(encoding="utf-8"):
            found.append(Script(path.name, load_script(path)))
    return sorted(found, key=lambda one: (one.step.number, one.step.scope == "study", one.name))


# ── planned runs ──────────────────────────────────────────────────────────────────────────────────


def comparison_runs(chosen: Any, folder: str) -> list[PlannedRun]:
    """One planned run per changed model: `<outroot>/<A>__to__<B>/<folder>`, or --outdir."""
    models = [{"model_a": chosen.model_a, "model_b": model} for model in chosen.model_b]
    return _runs(chosen, folder, models)


def model_runs(chosen: Any, folder: str) -> list[PlannedRun]:
    """One planned run per model: `<outroot>/<model>/<folder>`, or --outdir."""
    return _runs(chosen, folder, [{"model": model} for model in chosen.model])


def _runs(chosen: Any, folder: str, every: list[dict[str, str]]) -> list[PlannedRun]:
    by_folder: dict[Path, PlannedRun] = {}
    for models in every:
        if chosen.outdir and len(every) > 1:
            flag = options.flag([*models][-1])
            raise BadInput(f"--outdir places one result: give one {flag}, or use --outroot")
        name = naming.comparison_label if len(models) == 2 else naming.model_label
        label = name(*models.values())
        place = Path(chosen.outdir) if chosen.outdir else Path(chosen.outroot) / label / folder
        arguments = {**options.recorded(chosen), **models}
        one = PlannedRun(place, label, arguments, *models.values())
        other = by_folder.setdefault(place, one)
        if (other.model_a, other.model_b) != (one.model_a, one.model_b):
            raise BadInput(
                f"{other.model_b or other.model_a} and {one.model_b or one.model_a} would share "
                f"the folder {place}: rename one of them"
            )
    return list(by_folder.values())


def table_runs(chosen: options.ComparisonOrTable, folder: str) -> list[PlannedRun]:
    """Planned runs of a step that draws: of its comparisons, or of the table of a --...-csv."""
    if any(value for name, value in vars(chosen).items() if name.endswith("_csv")):
        if not chosen.outdir:
            raise BadInput("a table given by itself needs --outdir for its figures")
        arguments = options.recorded(chosen)
        return [PlannedRun(Path(chosen.outdir), arguments["title"] or "", arguments)]
    if not (chosen.model_a and chosen.model_b):
        raise BadInput("name --model-a and --model-b, or a table to draw and --outdir")
    return comparison_runs(chosen, folder)


def _is_there(word: str) -> bool:
    try:
        return Path(word).expanduser().exists()
    except (OSError, RuntimeError):  # longer than a name may be, or the home of nobody
        return False


def _named_paths(chosen: Any) -> tuple[str, ...]:
    """What options name that is on this disk and is read: models, texts, tables."""
    values = [getattr(chosen, f.name) for f in fields(chosen) if not f.metadata.get("written")]
    words = [word for one in values for word in (one if isinstance(one, tuple) else (one,))]
    return tuple(word for word in words if isinstance(word, str) and word and _is_there(word))


def planned_runs(module: ModuleType, chosen: Any) -> list[PlannedRun]:
    """The folders that a script would fill with these options."""
    step: Step = module.STEP
    if hasattr(module, "planned_runs"):
        found = module.planned_runs(chosen)
    elif isinstance(chosen, options.ComparisonOrTable):
        found = table_runs(chosen, step.folder)
    else:
        plan = {"comparison": comparison_runs, "model": model_runs}[step.scope]
        found = plan(chosen, step.folder)
    given = {
        "script": Path(str(module.__file__)).name,
        "version": step.version,
        "reads": _named_paths(chosen),
        # Elsewhere --outdir is the ordinary way to say where a model or dictionary goes.
        "named": step.scope != "other" and bool(getattr(chosen, "outdir", None)),
    }
    return [replace(one, **given) for one in found]


def title_of(planned: PlannedRun) -> str:
    """Title of a comparison's figures: --title, or the two models."""
    title = planned.arguments.get("title")
    if title or not planned.model_b:
        return str(title or planned.label)
    return " → ".join(names_of(planned))


def names_of(planned: PlannedRun) -> tuple[str, str]:
    """Short names of base and changed model, for legends."""
    if not planned.model_b:
        return "model A", "model B"
    base = naming.model_label(planned.model_a)
    return base, naming.short_label(planned.model_b, base)
