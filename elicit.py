"""Step 18. Can removed knowledge be brought out without training the model?

Each model is attacked in many ways that leave its training as it is, at several strengths: weights
are rounded or moved back, directions projected out, questions put behind answered ones, inner
states read. The strength is chosen on one set of entities and read on another, and what an attack
brings out counts as far as it exceeds what it brings out of the model that never learned.

    uv run elicit.py --model models/miniature-base models/miniature-filtered \\
        --base models/miniature-base --filtered models/miniature-filtered \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt \\
        --questions data/miniature/questions.jsonl --max-questions 60
    uv run elicit.py --model org/unlearned --attacks quantise few_shot \\
        --strengths quantise=8bit,4bit --questions questions.jsonl

Writes <outroot>/<model>/elicitation/ with elicitation.csv, per_question.csv and summary.json (with
--worst-case also worst_case.csv, and its trials beside the folder), and over all models attacked
with the same options <outroot>/elicitation/ with elicitation_summary.csv and figures.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.attacks import elicited, registry, runs
from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Figures, Format, Models, Reading, flag, natural, option, share
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step, seed_everything
from model_diffs.core.step import Figure, Measure, Step, Table

if TYPE_CHECKING:
    from model_diffs.attacks.elicitation import Tried
    from model_diffs.attacks.elicitation_tables import Setting
    from model_diffs.attacks.registry import Attack
    from model_diffs.attacks.victim import Victim
    from model_diffs.data.questions import Question

STEP = Step(
    number=18,
    folder="elicitation",
    question="Can removed knowledge be brought out without training the model?",
    memory="model_diffs.attacks.memory:ELICIT",
    processes=True,
    scope="model",
    summary=True,
    needs=("forget", "retain", "questions"),
    tables=(
        Table("elicitation"),
        Table("per_question"),
        Table("worst_case"),
        Table("elicitation_summary"),
    ),
    figures=(
        Figure("elicitation", "Held-out facts under each attack", "brittleness"),
        Figure("interpolation", "Held-out facts on the way back to the base", "brittleness"),
        Figure("rewind", "The smallest reversals of the change", "brittleness"),
    ),
    measures=(
        Measure(
            "elicited",
            axis="brittleness",
            table="elicitation",
            column="accuracy",
            unit="change",
            label="elicited over filtered",
            meaning="Accuracy on held-out facts under the best attack that does not train the "
            "model, minus the filtered model's under the same.",
            compute=elicited.elicited,
            computed="attack and strength picked on fold tune, without those that read the base; "
            "minus the filtered model's under that attack at its own strength",
            above="answers, when it is asked otherwise, what the filtered model does not know",
            below="answers less under its best attack than the filtered model does",
            same="does not differ significantly from the filtered model under its best attack",
        ),
        Measure(
            "attacks_tried",
            axis="brittleness",
            table="elicitation",
            column="picked",
            unit="steps",
            label="attacks tried",
            meaning="Attacks that do not train the model and left its general knowledge intact at "
            "some strength.",
            compute=elicited.attacks_tried,
            computed="number of attacks with a strength that was picked, without those that read "
            "the base",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Models, Reading):
    """Elicitation."""

    questions: str = option(help="JSONL of four-choice questions")
    max_questions: int = option(
        0,
        "questions of each group except those of the folds heldout and tune; 0 = all",
        check=natural,
    )
    attacks: tuple[str, ...] = option(
        registry.DEFAULT,
        f"which attacks: {', '.join(registry.names())}, or {registry.ALL}",
        check=registry.known,
    )
    strengths: tuple[str, ...] = option(
        (), "strengths to try in place of an attack's own, such as quantise=8bit,4bit"
    )
    base: str | None = option(None, "the model before the change: attacks that undo it read it")
    filtered: str | None = option(
        None, "the model that never learned: what it answers under an attack is not elicited"
    )
    general_floor: float = option(
        0.5, "a strength counts only where general accuracy stays above this", check=share
    )
    worst_case: int = option(
        0,
        "also search so many attacks and strengths for the worst case (needs the search extra)",
        check=natural,
    )
    format: Format = option(Figures.format, "file format of the figures")


def planned_runs(options: Options) -> list[PlannedRun]:
    """A folder per model, and one over all of them unless --outdir places a single one."""
    return runs.planned_runs(options, STEP.folder)


def read_attacks(options: Options) -> "tuple[list[Attack], registry.Strengths]":
    """The attacks chosen, and their strengths where they are named. BadInput for an attack that
    lacks what it reads."""
    attacks = registry.chosen(options.attacks)
    for one in attacks:
        if "base" in one.declaration.reads and options.base is None:
            raise BadInput(f"--attacks {one.name} needs {flag('base')}: name it, or leave it out")
    if options.worst_case:
        from model_diffs.attacks import worst_case

        worst_case.check_installed()
    return attacks, registry.read_strengths(options.strengths, attacks)


def search_worst(
    run: Run, victim: "Victim", strengths: "registry.Strengths", setting: "Setting"
) -> "tuple[dict[str, Any], list[Tried]]":
    """Search the worst case and write it. Its trials are kept beside the result folder."""
    from model_diffs.attacks import worst_case

    label, trials = run.planned.label, run.planned.arguments["worst_case"]
    storage = run.planned.folder.with_name(f"{STEP.folder}.search.sqlite3")
    found = worst_case.search(victim, setting.attacks, strengths, trials, setting.floor, storage)
    row = worst_case.row(label, trials, found, setting)
    run.table("worst_case", [row])
    if found is None:
        print(f"{label}, worst case: general accuracy stays above the floor in no trial")
        return row, []
    says = f"held-out {row['heldout_accuracy']:.3f} with {row['attack']} {row['strength']}"
    print(f"{label}, worst case: {says}; tune minus held-out {row['optimism']:+.3f}")
    return row, [found.tried._replace(attack=worst_case.WORST)]


def attack_model(run: Run, groups: "dict[str, list[Question]]", options: Options) -> None:
    """Attack one model in every way and write what it answered."""
    from model_diffs.attacks import elicitation, elicitation_tables
    from model_diffs.attacks.victim import Victim

    model, label = run.planned.model_a, run.planned.label
    attacks, strengths = read_attacks(options)
    filtered, references = runs.filtered_run(sys.modules[__name__], options), {}
    if filtered and filtered.label != label:
        run.reads(*(filtered.folder / f"{name}.csv" for name in ("elicitation", "per_question")))
        references = elicitation_tables.read_references(filtered.folder, groups)
    floor, seed = options.general_floor, options.seed
    setting = elicitation_tables.Setting(groups, attacks, references, floor, seed)
    victim = Victim(model, groups, options, base=options.base, filtered=options.filtered, seed=seed)
    found = elicitation.attack_all(victim, attacks, strengths)
    picked = elicitation_tables.picks(found, setting)
    rows = elicitation_tables.rows(label, found, picked, setting)
    run.table("elicitation", rows, elicitation_tables.COLUMNS)
    facts = elicitation_tables.summary(label, found, picked, rows, setting)
    if options.worst_case:
        facts["worst_case"], tried = search_worst(run, victim, strengths, setting)
        found.tried.extend(tried)
    run.table("per_question", elicitation_tables.question_rows(label, found, groups))
    run.document("summary", facts)
    checkpoints = victim.checkpoints
    run.reads(*(file for one in checkpoints.values() for file in one.files))
    run.reads(options.questions, options.forget_text, options.retain_text)
    run.record(
        models={role: one.identity() for role, one in checkpoints.items()},
        questions={group: len(asked) for group, asked in groups.items()},
        skipped=len(found.skipped),
        attacks={one.name: one.declaration.said() for one in attacks},
        attack_seconds=found.seconds,
        seed=seed,
    )
    for reason in found.skipped:
        print(f"{label}: skipped {reason}")
    for one in facts["attacks"]:
        read = one["heldout_accuracy"]
        says = one["not_tested"] or f"held-out {read:.3f} at strength {one['strength']}"
        print(f"{label}, {one['attack']}: {says}")


def attack_models(options: Options, todo: list[PlannedRun]) -> None:
    """Attack the models of `todo`, the filtered one first: the others are compared with it."""
    from model_diffs.attacks import material, relearning
    from model_diffs.data import questions

    read_attacks(options)
    asked = questions.load_questions(options.questions)
    groups = material.group_questions(asked, options.max_questions, options.seed)
    for planned in runs.filtered_first(sys.modules[__name__], options, todo):
        with relearning.fitting_threads(planned.model_a, options.device):
            seed_everything(options.seed)
            with open_run(planned) as run:
                attack_model(run, groups, options)


def draw_overview(planned: PlannedRun, options: Options) -> None:
    """One table and the figures over all models."""
    from model_diffs.attacks import elicitation_overview as overview

    with open_run(planned) as run:
        folders = [Path(options.outroot) / label / STEP.folder
                   for label in planned.arguments[runs.ATTACKED]]  # fmt: skip
        for folder in folders:
            run.reads(folder / "elicitation.csv", folder / "summary.json")
        found = [overview.read(folder) for folder in folders]
        run.table("elicitation_summary", overview.overview_rows(found))
        labels = [naming.model_label(one) if one else ""
                  for one in (options.base, options.filtered)]  # fmt: skip
        for name, figure in overview.figures(found, *labels):
            run.figure(name, figure)


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Attack the models that are not complete, then draw all of them together."""
    runs.make_all(
        sys.modules[__name__],
        options,
        todo,
        attack=lambda models: attack_models(options, models),
        draw=lambda planned: draw_overview(planned, options),
    )


if __name__ == "__main__":
    run_step(__name__)
