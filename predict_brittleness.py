"""Step 22. Does the signature predict, before any attack, what the attack brings back?

Ridge regression on three measures, fitted in the development worlds without the family that is
predicted, is scored in the locked worlds: mean rank correlation within a world, and what it gains
over strength alone. docs/brittleness.md fixes all of it beforehand.

    uv run predict_brittleness.py
    uv run predict_brittleness.py --data docs/data/brittleness.csv
    uv run predict_brittleness.py --model unlearned_models/mine --base models/base \\
        --data docs/data/brittleness.csv

Writes <outroot>/brittleness/prediction/: brittleness.csv (a row per model), states.csv (what became
of each), primary.csv, measures.csv, predictions.csv, brittleness.png; with --choose choice.csv in
their place, with --power power.csv. With --register it writes the hashes of the registered document
and no result, with --model it prints where a model stands.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Run, natural, option, recorded
from model_diffs.core.results import PlannedRun, open_run
from model_diffs.core.results import Run as Writing
from model_diffs.core.script import execute, run_script
from model_diffs.core.step import Figure, Step, Table, load_steps

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.brittleness.analysis import Settings

STEP = Step(
    number=22,
    folder="prediction",
    question="Does the signature predict, before any attack, what the attack brings back?",
    scope="other",
    tables=(
        Table("brittleness"),
        Table("states"),
        Table("primary"),
        Table("measures"),
        Table("predictions"),
        Table("choice"),
        Table("power"),
    ),
    figures=(Figure("brittleness", "Predicted against true"),),
)


@dataclass(frozen=True, kw_only=True)
class Options(Run):
    """Prediction."""

    study: str = option("brittleness", "study of several worlds, by name or path")
    data: str | None = option(None, "read this table in place of the worlds' results")
    choose: bool = option(False, "rank measures, and triples of them, in development worlds")
    power: int = option(0, "simulate this many studies for the registered rule", check=natural)
    register: bool = option(False, "fix the registered document by its hashes", recorded=False)
    model: str | None = option(None, "place this model in the fitted picture", recorded=False)
    base: str | None = option(None, "the model before its change", recorded=False)


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder; none where a model is placed or the document registered."""
    if options.register or options.model:
        return []
    what = "choice" if options.choose else "power" if options.power else STEP.folder
    folder = Path(options.outdir or Path(options.outroot) / "brittleness" / what)
    return [PlannedRun(folder, what, recorded(options))]


def read(
    options: Options,
) -> "tuple[pd.DataFrame, pd.DataFrame, Settings, tuple[int, ...]]":
    """Rows of all models, what became of each, how they are analysed, and the locked worlds."""
    import pandas as pd

    from model_diffs.brittleness import analysis, table
    from model_diffs.core.tables import read_table
    from model_diffs.pipeline.studies import read_study

    study = read_study(options.study)
    if study.worlds is None:
        raise BadInput(f"{study.path}: no [worlds]: name a study of several")
    given = study.prediction
    settings = analysis.Settings(given.predictors, given.baseline, given.ridge, seed=options.seed)
    if options.data:
        numbers, empty = ["world"], [table.TARGET, *given.predictors, *given.baseline]
        names = {"part": (), "model": (), "role": (), "status": ()}
        rows = read_table(Path(options.data), "write it with --outroot", numbers, empty, names)
        return rows, pd.DataFrame(), settings, study.worlds.locked
    rows, states = table.gather(study, Path(options.outroot))
    return rows, pd.DataFrame(states), settings, study.worlds.locked


def predict(
    run: Writing, rows: "pd.DataFrame", settings: "Settings", locked: "tuple[int, ...]"
) -> None:
    """The registered analysis of the locked worlds; of the development worlds without them.

    `locked`: the worlds that have to be there whole for a verdict.
    """
    from model_diffs.brittleness import picture, tables
    from model_diffs.brittleness.table import DEVELOPMENT, REMOVAL

    development = rows["part"] == DEVELOPMENT
    known, new = rows[development], rows[~development]
    if new.empty or not new["status"].eq("attacked").any():
        print("no locked world is attacked yet: development worlds predict one another")
        new = known
    waiting = new["role"].eq(REMOVAL) & new["status"].eq("not attacked")
    final = {*new["world"]} == {*locked} and not waiting.any()
    if not final and new is not known:
        print("interim: not all locked worlds are attacked, so that there is no verdict")
    found = tables.primary_table(known, new, settings, final)
    run.table("primary", found)
    predicted = tables.predictions(known, new, settings)
    run.table("predictions", predicted)
    run.table("measures", tables.measures_table(known, new, settings))
    title = ", ".join(settings.predictors)
    run.figure("brittleness", picture.draw(predicted, title))
    print(found.to_string(index=False))


def place(options: Options) -> None:
    """Print where one's own model stands."""
    from model_diffs.brittleness import placing, predictors
    from model_diffs.brittleness.table import DEVELOPMENT

    if not options.base:
        raise BadInput("--model needs --base: the signature is that of a change")
    rows, _, settings, _ = read(options)
    own = predictors.frame(
        Path(options.outroot), options.base, options.model or "", load_steps(), options.seed,
        settings.predictors,
    )  # fmt: skip
    found = placing.place(rows[rows["part"] == DEVELOPMENT], own, settings)
    low, high = found.low, found.high
    print(f"{options.model}: predicted {found.predicted:.3f} (95 %: {low:.3f} to {high:.3f})")
    for column in settings.predictors:
        beyond = " – beyond the models fitted" if column in found.outside else ""
        print(f"  {column} {own[column].iloc[0]:.4g}{beyond}")
    if not found.within:
        print(
            "The model is outside of what was fitted: the interval says nothing of it "
            f"(distance {found.leverage:.1f}, largest fitted {found.largest:.1f})."
        )


def register(options: Options) -> None:
    """Write the hashes of the registered document."""
    from model_diffs.attacks import lock
    from model_diffs.pipeline.studies import read_study

    study = read_study(options.study)
    if study.worlds is None:
        raise BadInput(f"{study.path}: no [worlds]: nothing to register")
    print(lock.register(Path(study.worlds.registration)))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Analyse, choose or simulate."""
    rows, states, settings, locked = read(options)
    for planned in todo:
        with open_run(planned) as run:
            if options.choose:
                from model_diffs.brittleness import choosing, table

                known = rows[rows["part"] == table.DEVELOPMENT]
                found = choosing.choose(known, table.predictors_of(rows), settings.ridge)
                print(run.table("choice", found).groupby("size").head(15).to_string(index=False))
            elif options.power:
                from model_diffs.brittleness import tables

                print(run.table("power", tables.power_table(rows, options.power, settings)))
            else:
                run.table("brittleness", rows)
                if len(states):
                    run.table("states", states)
                predict(run, rows, settings, locked)


def command() -> None:
    """Register or place, which leave no result folder, or run the step."""
    given = parse(Options, None, __doc__)
    if given.register:
        register(given)
    elif given.model:
        place(given)
    else:
        execute(sys.modules[__name__])


if __name__ == "__main__":
    run_script(command)
