"""Step 13. At which depth does a model tell forget from retain texts, and where does it know facts?

On the state of each text's last token, a logistic regression per layer, tested on documents it was
not trained on, beside the same with shuffled labels. With --questions also four-choice accuracy
per layer, read through the final norm and the head: topic and knowledge are not the same. One model
at a time; states come from step 4's pass and are made where they are missing.

    uv run linear_probe_analysis.py --model ./models/miniature-base ./models/miniature-filtered \\
        --base ./models/miniature-base --questions data/miniature/questions.jsonl \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run linear_probe_analysis.py --model EleutherAI/deep-ignorance-unfiltered --max-samples 100

Writes <outroot>/<model>/linear_probes/ with probe_results.csv, auc_resamples.csv,
linear_probe_analysis.png and summary.json; with --questions also knowledge_by_layer.csv,
per_question.csv and knowledge_by_layer.png.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_diffs.core.errors import BadInput
from model_diffs.core.options import Figures, Models, Pass, option, positive
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Claims, Figure, Layers, Measure, Step, Table, title_of

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.activations.store import Statistics
    from model_diffs.data.questions import Question

THIRDS: "tuple[Layers, ...]" = ("early", "middle", "late")


def knowledge(
    key: str, domain: str, label: str, meaning: str, what: str, name: str, **read: Any
) -> Measure:
    """A measure of answers: `what` the model does more or less often, and the `name` of it."""
    return Measure(
        key,
        axis="knowledge",
        unit="accuracy",
        label=label,
        meaning=meaning,
        undefined=f"no {domain} question was asked",
        paired_by="entity",
        of_base=True,
        above=f"{what} more often than the filtered model",
        below=f"{what} less often than the filtered model",
        same=f"does not differ significantly from the filtered model in {name}",
        against_base=Claims(
            above=f"{what} more often than the base",
            below=f"{what} less often than the base",
            same=f"does not differ significantly from the base in {name}",
        ),
        **read,
    )


STEP = Step(
    number=13,
    folder="linear_probes",
    question="At which depth can the subject, and the knowledge itself, be read?",
    memory="model_diffs.activations.memory:MODELS",
    processes=True,
    scope="model",
    version=4,
    needs=("forget", "retain", "questions"),
    tables=(
        Table("probe_results"),
        Table("auc_resamples"),
        Table("knowledge_by_layer"),
        Table("per_question"),
        Table("inside"),
        Table("inside_per_question"),
    ),
    figures=(
        Figure("linear_probe_analysis", "Probes by depth", "localisation"),
        Figure("knowledge_by_layer", "Knowledge by depth", "knowledge"),
    ),
    measures=(
        *(
            Measure(
                f"probe_{third}",
                axis="localisation",
                table="probe_results",
                column="auc_residual",
                unit="change",
                label=f"probe AUC, {third}, change",
                meaning="Change of the AUC of a linear probe for forget against retain texts; mean "
                f"over the outputs of the {third} third of the blocks, the last before the final "
                "norm.",
                layers=third,
                less_base=True,
                paired_by="resample",
                kept="auc_resamples",
                options=("folds", "C", "no_standardize", "questions"),
                unchanged=0.0,
                above=f"has a higher probe AUC in the {third} blocks than the filtered model",
                below=f"has a lower probe AUC in the {third} blocks than the filtered model",
                same="does not differ significantly from the filtered model in probe AUC in the "
                f"{third} blocks",
                against_base=Claims(
                    above=f"makes forget texts easier to tell in the {third} blocks",
                    below=f"makes forget texts harder to tell in the {third} blocks",
                    same=f"does not significantly change probe AUC in the {third} blocks",
                    reference=0.0,
                    shown="AUC {}",
                ),
            )
            for third in THIRDS
        ),
        *(
            knowledge(
                f"{domain}_accuracy",
                domain,
                f"{domain} accuracy",
                f"Share of {domain} questions answered correctly at the output, of fold heldout "
                "where they have it; chance is 0.25.",
                f"answers {domain} questions correctly",
                f"accuracy on {domain} questions",
                table="knowledge_by_layer",
                column="accuracy",
                where={"domain": domain, "part": "result"},
                layers="last",
                kept="per_question",
                kept_column="correct",
            )
            for domain in ("hazard", "adjacent", "general")
        ),
        knowledge(
            "hazard_inside",
            "hazard",
            "hazard accuracy inside",
            "Logit-lens accuracy on hazard questions at the inner block that answers best on other "
            "questions, corrected for chance: 0 for guessing, 1 for full knowledge.",
            "answers hazard questions correctly, read at its best inner block,",
            "logit-lens accuracy on hazard questions",
            table="inside",
            column="corrected",
            where={"domain": "hazard"},
            kept="inside_per_question",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Models, Pass, Figures):
    """Probes."""

    C: float = option(1.0, "inverse strength of the L2 penalty", check=positive)
    max_iter: int = option(1000, "maximum iterations per probe", check=positive)
    no_standardize: bool = option(False, "use states as they are")
    folds: int = option(5, "folds of documents, of whole entities where known", check=positive)
    questions: str | None = option(None, "JSONL file of four-choice questions")
    base: str | None = option(
        None, "the model that decides for all whether a first position is left out; none: each"
    )


def probe(
    run: Run, found: "Statistics", questions: "Sequence[Question]", options: Options
) -> dict[str, Any]:
    """Probe every state of a model: tables, figure, and facts for the summary."""
    from model_diffs.diagnostics import probes
    from model_diffs.models.devices import pick_device

    model = run.planned.model_a
    forget, retain = (
        found.models[split.name, model].read("last", "every") for split in found.splits
    )
    kept = [found.models[split.name, model].read("documents") for split in found.splits]
    first, second = (
        [split.texts[i] for i in places] for split, places in zip(found.splits, kept, strict=True)
    )
    plan, task, by = probes.folds_of(first, second, questions, options.folds, options.seed)
    scaled = not options.no_standardize
    settings = probes.Settings(options.C, options.max_iter, scaled, options.seed)
    probed = probes.probe_tables(forget, retain, plan, settings, task, pick_device(options.device))
    run.table("auc_resamples", probed.resamples)
    draw_probes(run, run.table("probe_results", probed.table))
    facts = {**probes.summary(probed), "folds_by": by}
    failed = facts["fits"] - facts["fits_converged"]
    if failed:
        print(
            f"warning: {run.planned.label}: {failed} of {facts['fits']} probes did not converge in "
            f"{options.max_iter} iterations; raise --max-iter (column fits_converged)",
            file=sys.stderr,
        )
    return facts


def draw_probes(run: Run, table: "pd.DataFrame") -> None:
    """Accuracy beside training, shuffled labels and the baseline; AUC beside chance."""
    from model_diffs.core import figures
    from model_diffs.core.figures import STATES, Panel, column_line, layer_figure

    colour = figures.model_colour(run.planned.label)
    if colour in figures.OTHERS:  # neither filtered nor unlearned
        colour = figures.BASE
    accuracy = [
        column_line(table, "test_accuracy", "documents left out", colour),
        column_line(table, "train_accuracy", "documents trained on", colour, ":"),
        column_line(table, "control_accuracy", "labels shuffled", "#b4591f", "--"),
    ]
    auc = [column_line(table, "auc", "documents left out", colour)]
    baseline, title = float(table["majority_baseline"].iloc[0]), "Probe on the last token"
    panels = [
        Panel(title, "accuracy", accuracy, baseline, "larger class", xlabel=STATES),
        Panel("How well it orders them", "AUC", auc, 0.5, "chance", xlabel=STATES),
    ]
    title = f"Forget against retain texts: {title_of(run.planned)}"
    run.figure("linear_probe_analysis", layer_figure(title, panels))


def answer(run: Run, questions: "Sequence[Question]", options: Options) -> dict[str, Any]:
    """Accuracy on the questions by layer: tables, figure, and facts for the summary."""
    from model_diffs.evaluation import logit_lens
    from model_diffs.models import loading

    model = loading.load_for(options, run.planned.model_a)
    tokenizer = loading.load_tokenizer(run.planned.model_a, options.trust_remote_code)
    # A question is four sentences.
    size = 4 * options.batch_size
    answers = logit_lens.answers_by_layer(model, tokenizer, questions, size, shared=True)
    table = run.table("knowledge_by_layer", logit_lens.accuracy_rows(answers, options.seed))
    run.table("per_question", logit_lens.question_rows(answers))
    inside, single = logit_lens.inside_rows(answers, options.seed)
    if inside:
        run.table("inside", inside)
        run.table("inside_per_question", single)
    table = table[table["part"] == logit_lens.RESULT].drop(columns=["fold", "part"])
    draw_knowledge(run, table)
    final = table[table["layer"] == table["layer"].max()]
    best = table.loc[table.groupby("domain", sort=False)["accuracy"].idxmax()]
    parts = {"knowledge_final": final, "knowledge_best": best}
    facts: dict[str, Any] = {
        name: {row["domain"]: row for row in part.to_dict("records")}
        for name, part in parts.items()
    }
    return facts | {"knowledge_inside": {row["domain"]: row for row in inside}}


def draw_knowledge(run: Run, table: "pd.DataFrame") -> None:
    """One line per domain over layers."""
    from model_diffs.core.figures import OTHERS, STATES, Panel, column_line, layer_figure

    ends = table.rename(columns={"low": "accuracy_low", "high": "accuracy_high"})
    colours = itertools.cycle(OTHERS)
    lines = [
        column_line(part, "accuracy", str(domain), next(colours))
        for domain, part in ends.groupby("domain", sort=False)
    ]
    title, ylabel = "Read from each layer through final norm and head", "four-choice accuracy"
    panel = Panel(title, ylabel, lines, 0.25, "chance", from_zero=True, xlabel=STATES)
    title = f"Knowledge by depth: {title_of(run.planned)}"
    run.figure("knowledge_by_layer", layer_figure(title, [panel]))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Probe the models."""
    from model_diffs.activations import store
    from model_diffs.data import texts
    from model_diffs.data.questions import load_questions
    from model_diffs.models import files
    from model_diffs.stats import cross_validation

    if options.questions and options.device_map:
        raise BadInput("--device-map serves the activation pass; --questions needs one device")
    splits = texts.read_splits(options.forget_text, options.retain_text, options.max_samples)
    cross_validation.check_splits(splits, options.folds)
    questions = load_questions(options.questions) if options.questions else []
    models = [planned.model_a for planned in todo]
    found = store.statistics(options, models, base=options.base)
    for planned in todo:
        with open_run(planned) as run:
            facts = probe(run, found, questions, options)
            if options.questions:
                run.reads(options.questions)
                facts |= answer(run, questions, options)
            if options.base:
                run.reads(*files.content_files(options.base))
            run.document("summary", facts)
            store.describe(run, found)


if __name__ == "__main__":
    run_step(__name__)
