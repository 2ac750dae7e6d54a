"""Step 14. Does knowledge come back that the attacker never had? The relearning attack.

A copy of each model is fine-tuned on attack texts, at several learning rates. Along the way it is
asked about facts these texts do not state, about those they do, and about general ones, and NLL is
measured on forget and retain lines that were not attacked.

    uv run relearn.py --models models/miniature-base models/miniature-filtered \\
        --base models/miniature-base --attack-data data/miniature/attack.txt \\
        --forget-data data/miniature/forget.txt --retain-data data/miniature/retain.txt \\
        --questions data/miniature/questions.jsonl --lr 5e-4 1e-3
    uv run relearn.py --models unlearned_models/EleutherAI_deep-ignorance-unfiltered__rmu \\
        --base EleutherAI/deep-ignorance-unfiltered --lr 1e-5 5e-5 --lora-rank 16

Writes <outroot>/<model>/relearning/ with relearning.csv, per_question.csv (with --questions) and
summary.json, and over all models that
were attacked in the same way <outroot>/relearning.png and <outroot>/relearning/.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.core import arguments, folders, naming, results
from model_diffs.core.results import PlannedRun

if TYPE_CHECKING:
    from model_diffs.attacks.relearning import Material, Measured, Settings

FOLDER = "relearning"


def steps_list(text: str) -> str:
    """Steps separated by commas, sorted, 0 among them."""
    steps = {0, *(arguments.natural(part) for part in text.split(",") if part.strip())}
    return ",".join(map(str, sorted(steps)))


def add_attack(parser: argparse.ArgumentParser) -> None:
    """The attack and how it is measured."""
    group = parser.add_argument_group("attack")
    group.add_argument("--attack-data", default=None, help="trained on; none: 80%% of forget lines")
    group.add_argument("--steps", type=arguments.positive_int, default=60)
    group.add_argument(
        "--lr", type=arguments.positive_float, nargs="+", default=[1e-5, 5e-5], help="one or more"
    )
    group.add_argument("--batch-size", type=arguments.positive_int, default=16)
    group.add_argument("--max-length", type=arguments.positive_int, default=512, help="tokens")
    group.add_argument(
        "--lora-rank", type=arguments.natural, default=0, help="0 = off; needs the lora extra"
    )
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--eval-steps", type=steps_list, default="0,5,10,20,40,60", help="those beyond --steps: off"
    )
    group.add_argument("--forget-data", default="data/forget.txt", help="NLL, less attacked lines")
    group.add_argument("--retain-data", default="data/retain.txt", help="NLL; never trained on")
    group.add_argument(
        "--max-lines", type=arguments.natural, default=200, help="of each for NLL; 0 = all"
    )
    group.add_argument("--questions", default=None, help="JSONL of four-choice questions")
    group.add_argument(
        "--max-questions",
        type=arguments.natural,
        default=0,
        help="of each kind but held-out ones; 0 = all",
    )
    group.add_argument(
        "--general-floor",
        type=float,
        default=0.7,
        help="general accuracy that a model must keep for its recovery to count",
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--models", required=True, nargs="+", help="org/name[@revision] or folders")
    parser.add_argument("--base", default=None, help="the model whose knowledge counts as whole")
    add_attack(parser)
    arguments.add_compute(parser)
    parser.add_argument("--format", default="png", choices=["png", "pdf", "svg"], help="of figures")
    group = parser.add_argument_group("run")
    group.add_argument("--outroot", default="outputs", help="folder of all results")
    group.add_argument("--outdir", default=None, help="place one model's folder here instead")
    group.add_argument("--seed", type=int, default=42, help="seed of everything random")
    group.add_argument("--force", action="store_true", help="run again what is complete")
    return parser.parse_args(argv)


# ── what is planned ───────────────────────────────────────────────────────────────────────────────


def model_plans(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per model."""
    as_steps = argparse.Namespace(**{**vars(options), "model": options.models})
    return arguments.model_runs(as_steps, FOLDER)


def overview_plan(options: argparse.Namespace, planned: Sequence[PlannedRun]) -> PlannedRun:
    """The folder over all models: those of this call, and those attacked in the same way before."""
    shared = arguments.recorded(options)
    labels = [one.label for one in planned]
    for record in sorted(Path(options.outroot).glob(f"*/{FOLDER}/{results.RECORD}")):
        old = (results.read_record(record.parent) or {}).get("arguments", {})
        if {k: v for k, v in old.items() if k != "model"} == shared:
            labels.append(record.parent.parent.name)
    # Base and filtered models before the unlearned ones, whose names are longer.
    base = naming.model_label(options.base) if options.base else ""
    order = sorted(dict.fromkeys(labels), key=lambda label: (label != base, "__" in label, label))
    return PlannedRun(Path(options.outroot) / FOLDER, "all models", {**shared, "attacked": order})


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """A folder per model, and the one over all of them unless --outdir places a single one."""
    planned = model_plans(options)
    return planned if options.outdir else [*planned, overview_plan(options, planned)]


# ── the attack ────────────────────────────────────────────────────────────────────────────────────


def settings_of(options: argparse.Namespace) -> "Settings":
    """The numbers of the attack; the last step is always measured."""
    from model_diffs.attacks.relearning import Settings

    steps = {int(part) for part in options.eval_steps.split(",")} | {options.steps}
    return Settings(
        steps=options.steps,
        eval_steps=tuple(sorted(step for step in steps if step <= options.steps)),
        batch_size=options.batch_size,
        max_length=options.max_length,
        lora_rank=options.lora_rank,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        seed=options.seed,
    )


def question_rows(
    material: "Material", label: str, lr: float | None, found: "Mapping[int, Measured]"
) -> list[dict[str, Any]]:
    """Rows of per_question.csv: each answer at each measured step; `lr` None for the base."""
    return [
        {
            "model": label,
            "lr": lr,
            "step": step,
            "group": group,
            "id": asked.id,
            "correct": int(right),
        }
        for step, measured in found.items()
        for group, questions in material.questions.items()
        for asked, right in zip(questions, measured.correct[group], strict=True)
    ]


def attack_model(
    run: results.Run, material: "Material", base: "Measured | None", options: argparse.Namespace
) -> None:
    """Attack one model at every rate and write what came back."""
    from model_diffs.attacks import relearning, relearning_tables
    from model_diffs.models.checkpoints import Checkpoint

    model, settings = run.planned.model_a, settings_of(options)
    label = run.planned.label
    start = relearning.measure(model, material, settings)
    rows = []
    answers = (
        question_rows(material, naming.model_label(options.base), None, {0: base}) if base else []
    )
    for lr in options.lr:
        found = relearning.attack(model, material, lr, settings, start)
        rows += relearning_tables.attack_rows(label, lr, found, base, options.seed)
        answers += question_rows(material, label, lr, found)
    run.table("relearning", rows, relearning_tables.COLUMNS)
    if answers:
        run.table("per_question", answers)
    known = base.accuracy.get("heldout") if base else None
    facts = relearning_tables.summary(
        label, rows, float(known.mean) if known else None, options.general_floor
    )
    run.document("summary", facts)
    involved = {"model": model, **({"base": options.base} if options.base else {})}
    for named in involved.values():
        run.reads(*Checkpoint.open(named).files)
    run.reads(options.forget_data, options.retain_data)
    run.reads(*(path for path in (options.attack_data, options.questions) if path))
    run.record(
        models={name: Checkpoint.open(named).identity() for name, named in involved.items()},
        attacked=len(material.attack),
        measured={"forget": len(material.forget), "retain": len(material.retain)},
        questions={group: len(asked) for group, asked in material.questions.items()},
        seed=options.seed,
    )
    print(f"{label}: {relearning_tables.verdict(facts)}")


# ── over all models ───────────────────────────────────────────────────────────────────────────────


def draw_overview(run: results.Run, options: argparse.Namespace) -> None:
    """One table and the figures over all models."""
    from model_diffs.attacks import relearning_tables

    labels: Any = run.planned.arguments["attacked"]
    places = {label: Path(options.outroot) / label / FOLDER for label in labels}
    found = relearning_tables.read_results(places)
    for one in found:
        run.reads(one.folder / "relearning.csv", one.folder / "summary.json")
    run.table("relearning_summary", relearning_tables.overview_rows(found))
    base = naming.model_label(options.base) if options.base else ""
    run.figure("relearning", relearning_tables.worst_figure(found, base))
    if len(options.lr) > 1:
        run.figure("relearning_by_rate", relearning_tables.rates_figure(found, base))


def publish_figure(folder: Path, options: argparse.Namespace) -> None:
    """Put the figure where it is looked for first, beside the folders; whole or not at all."""
    name = f"relearning.{options.format}"
    partial = Path(options.outroot) / f".{name}.{os.getpid()}{folders.PARTIAL}"
    try:
        shutil.copyfile(folder / name, partial)
        partial.replace(Path(options.outroot) / name)
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    """Attack the models that are not complete, then draw all of them together."""
    options = parse_arguments()
    todo = results.pending(model_plans(options), options.force)
    if todo:
        from model_diffs.attacks import relearning

        paths = relearning.Paths(
            options.forget_data, options.retain_data, options.attack_data, options.questions
        )
        material = relearning.read_material(
            paths, options.max_lines, options.max_questions, options.seed
        )
        if options.dtype in ("fp16", "bf16"):
            print(
                f"warning: weights are trained in {options.dtype}: updates below its resolution "
                "vanish, and the attack looks weaker than it is",
                file=sys.stderr,
            )
        base = None
        if options.base and material.questions:
            base = relearning.measure(options.base, material, settings_of(options))
        for planned in todo:
            arguments.seed_everything(options.seed)
            with results.open_run(planned) as run:
                attack_model(run, material, base, options)
    if options.outdir:
        return
    overview = overview_plan(options, model_plans(options))
    for planned in results.pending([overview], options.force):
        with results.open_run(planned) as run:
            draw_overview(run, options)
        publish_figure(planned.folder, options)
    if not (Path(options.outroot) / f"relearning.{options.format}").exists():
        publish_figure(overview.folder, options)


if __name__ == "__main__":
    arguments.run_script(main)
