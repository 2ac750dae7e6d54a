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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from model_diffs.core import naming, options
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    from model_diffs.core.tables import Place
    from model_diffs.stats.estimates import Estimate

Scope = Literal["comparison", "model", "study", "other"]


@dataclass(frozen=True)
class Table:
    """A CSV that a step writes."""

    name: str
    """Without `.csv`."""
    rows: type | None = None
    """NamedTuple of a row, whose fields document the columns."""


@dataclass(frozen=True)
class Figure:
    """A figure that a step draws and, where it names an axis, the report shows."""

    name: str
    """Without its ending."""
    caption: str
    axis: str = ""
    """Section of the report; empty: not shown there."""


@dataclass(frozen=True)
class Claims:
    """What the report says after a model's name, by where its number lies beside a reference."""

    above: str
    """The interval of the difference lies above zero (that of a quotient above one)."""
    below: str
    same: str
    """The interval does not exclude zero (one)."""
    reference: float | None = None
    """The number of an unchanged model; None where the base has a number of its own."""
    shown: str = "{}"
    """How the number is written."""


Layers = Literal["", "states", "inside", "last", "early", "middle", "late", "blocks"]


@dataclass(frozen=True)
class Measure:
    """A number of the signature: where the step left it and how the report words it."""

    key: str
    """Column of signature.csv; the interval's ends are `<key>_low` and `<key>_high`."""
    axis: str
    """Section of the report that it belongs to (`report/axes.py`)."""
    table: str
    """Table of the step that holds it."""
    column: str
    where: Mapping[str, str] = field(default_factory=dict)
    """Rows of the table: column → cell; `{base}` and `{changed}` stand for the models' labels."""
    unit: str = "ratio"
    """How it is written: `ratio`, `share`, `accuracy`, `change`, `rank`, `steps` or `nats`."""
    label: str = ""
    """Heading in table and figure, whole words; the key where empty."""
    meaning: str = ""
    """One sentence: what the number is."""

    # ── how rows become one number: their mean, unless something here says otherwise ──
    layers: Layers = ""
    """`states`: hidden states 1 to N, the outputs of all blocks; `inside`: all of these but the
    last; `last`: state N; `early`, `middle`, `late`: a third of them; `blocks`: rows with a layer
    of at least 0, matrices of blocks."""
    weights: tuple[str, ...] | None = None
    """Columns whose product weights a row; rows of weight 0 are left out. None: `tokens` where
    the rows are texts and have that column, else all rows alike."""
    weights_from: str = ""
    """Table of the comparison, `folder/table`, that has the weights by `name`."""
    relative_to: str = ""
    """Column to divide by, reduced over the same rows with the same weights."""
    norm: bool = False
    """Root of the sum of squares, √Σc², in place of the mean."""
    over: Mapping[str, str] = field(default_factory=dict)
    """The number of the rows of `where` divided by that of the rows with these cells instead."""
    less_base: bool = False
    """Minus the base's number (steps that measure models one by one)."""
    undefined: str = ""
    """Why there may be no number: no such row, nothing to divide by, an empty cell. Without it
    a table without such a row is damaged."""
    may_be_empty: bool = False
    """Cells may be empty: of rows of weight 0, or where the number is undefined."""
    compute: "Callable[[Place, Measure], Estimate] | None" = None
    """A computation of its own in place of all this. Raises Absent."""
    computed: str = ""
    """How it is computed, for the table in docs/signature.md where the fields do not say it."""

    # ── intervals ──
    paired_by: Literal["", "text", "question", "resample"] = ""
    """What is resampled: rows of a text or question (`text`, `id`), or, for `resample`, texts that
    the step has resampled itself."""
    kept: str = ""
    """Table with the values per text, question or resample; empty: `table` itself."""
    kept_column: str = ""
    """Its column of values; empty: `column`."""
    options: tuple[str, ...] = ()
    """Options of the step that must be equal for two numbers to be compared."""

    # ── words ──
    unchanged: float | None = None
    """The number of a model identical to the base; None where it is undefined or the base has a
    number of its own."""
    of_base: bool = False
    """The base has a number of its own."""
    logarithmic: bool = False
    """Distances between numbers are ratios."""
    above: str = ""
    """Said of a model whose number is above the filtered model's; empty: nothing is concluded."""
    below: str = ""
    same: str = ""
    against_base: Claims | None = None
    """What is said against the base; None where the number cannot lie on both sides of it."""

    @property
    def heading(self) -> str:
        return self.label or self.key.replace("_", " ")

    @property
    def against_filtered(self) -> Claims | None:
        return Claims(self.above, self.below, self.same) if self.above else None


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


def _one_folder_each(planned: Iterable[PlannedRun]) -> list[PlannedRun]:
    by_folder: dict[Path, PlannedRun] = {}
    for one in planned:
        other = by_folder.setdefault(one.folder, one)
        if (other.model_a, other.model_b) != (one.model_a, one.model_b):
            raise BadInput(
                f"{other.model_b or other.model_a} and {one.model_b or one.model_a} would share "
                f"the folder {one.folder}: rename one of them"
            )
    return list(by_folder.values())


def comparison_runs(chosen: Any, folder: str) -> list[PlannedRun]:
    """One planned run per changed model: `<outroot>/<A>__to__<B>/<folder>`, or --outdir."""
    if chosen.outdir and len(chosen.model_b) > 1:
        raise BadInput("--outdir places one comparison: give one --model-b, or use --outroot")
    planned = []
    for model_b in chosen.model_b:
        label = naming.comparison_label(chosen.model_a, model_b)
        place = Path(chosen.outdir) if chosen.outdir else Path(chosen.outroot) / label / folder
        models = {"model_a": chosen.model_a, "model_b": model_b}
        planned.append(PlannedRun(place, label, {**options.recorded(chosen), **models}, **models))
    return _one_folder_each(planned)


def model_runs(chosen: Any, folder: str) -> list[PlannedRun]:
    """One planned run per model: `<outroot>/<model>/<folder>`, or --outdir."""
    if chosen.outdir and len(chosen.model) > 1:
        raise BadInput("--outdir places one model: give one --model, or use --outroot")
    planned = []
    for model in chosen.model:
        label = naming.model_label(model)
        place = Path(chosen.outdir) if chosen.outdir else Path(chosen.outroot) / label / folder
        arguments = {**options.recorded(chosen), "model": model}
        planned.append(PlannedRun(place, label, arguments, model))
    return _one_folder_each(planned)


def table_runs(chosen: Any, folder: str, *tables: str | None) -> list[PlannedRun]:
    """Planned runs of a step that draws: of its comparisons, or of tables named instead."""
    if any(tables):
        if not chosen.outdir:
            raise BadInput("a table given by itself needs --outdir for its figures")
        return [PlannedRun(Path(chosen.outdir), chosen.title or "", options.recorded(chosen))]
    if not (chosen.model_a and chosen.model_b):
        raise BadInput("name --model-a and --model-b, or a table to draw and --outdir")
    return comparison_runs(chosen, folder)


def planned_runs(module: ModuleType, chosen: Any) -> list[PlannedRun]:
    """The folders that a script would fill with these options."""
    own = getattr(module, "planned_runs", None)
    if own:
        return own(chosen)
    plan = {"comparison": comparison_runs, "model": model_runs}[module.STEP.scope]
    return plan(chosen, module.STEP.folder)


def title_of(planned: PlannedRun) -> str:
    """Title of a comparison's figures: --title, or the two models."""
    title = planned.arguments.get("title")
    if title or not planned.model_b:
        return str(title or planned.label)
    base = naming.model_label(planned.model_a)
    return f"{base} → {naming.short_label(planned.model_b, base)}"


def names_of(planned: PlannedRun) -> tuple[str, str]:
    """Short names of base and changed model, for legends."""
    if not planned.model_b:
        return "model A", "model B"
    base = naming.model_label(planned.model_a)
    return base, naming.short_label(planned.model_b, base)
