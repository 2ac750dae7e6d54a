"""Step 19. What may tell, before any attack, how much an attack will bring back?

Each changed model is measured in ways that train nothing and tell it no fact: a direction projected
out, weights half-way back to the base, answers read inside, linear probes with entities held out,
similarity of states, Fisher-weighted change, curvature of the forget loss.

    uv run attack_free_analysis.py --model-a models/miniature-base \\
        --model-b unlearned_models/miniature-base__npo --questions data/miniature/questions.jsonl \\
        --forget-text data/miniature/forget.txt --retain-text data/miniature/retain.txt
    uv run attack_free_analysis.py --model-a org/base --model-b org/unlearned \\
        --questions questions.jsonl --max-questions 200

Writes <outroot>/<A>__to__<B>/attack_free/attack_free.csv (measure, value, reads_base).
"""

import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_diffs.core.options import Comparison, Pass, natural, option
from model_diffs.core.results import PlannedRun, open_run
from model_diffs.core.script import run_step, seed_everything
from model_diffs.core.step import Measure, Step, Table

if TYPE_CHECKING:
    from model_diffs.brittleness.attack_free.pair import Pair

MEASURES = {
    "start_accuracy": ("accuracy", "Hazard accuracy on held-out facts, before any attack."),
    "start_margin": ("nats", "Margin of the right answer."),
    "known_accuracy": ("accuracy", "Accuracy on questions of the other domains."),
    "ablation_gain": ("change", "Hazard accuracy gained when the direction from retain to forget "
                      "states is projected out, at the block that is best on fold tune."),
    "ablation_margin": ("nats", "The same of the margin of the right answer."),
    "midpoint_accuracy": ("accuracy", "Hazard accuracy of the weights half-way to the base."),
    "midpoint_margin": ("nats", "Margin of the right answer there."),
    "quarter_margin": ("nats", "The same a quarter of the way."),
    "lens_peak": ("accuracy", "Hazard accuracy read at the inner block that is best on the other "
                  "folds."),
    "lens_margin": ("nats", "Margin of the right answer there."),
    "statement_accuracy": ("accuracy", "Hazard accuracy in the words of the forget set."),
    "statement_margin": ("nats", "Margin of the right statement."),
    "knowledge_probe": ("accuracy", "Hazard accuracy of a linear probe of values on states at the "
                        "end of a question, entities held out."),
    "cka_forget": ("ratio", "1 − linear CKA of forget texts' mean states; mean over blocks."),
    "cka_retain": ("ratio", "The same of retain texts."),
    "fisher_forget": ("ratio", "ln √Σ F ΔW², F the base's Fisher information on forget texts."),
    "fisher_retain": ("ratio", "The same with F on retain texts."),
    "fisher_ratio": ("ratio", "fisher_forget − fisher_retain."),
    "forget_nll": ("nats", "NLL of forget texts, per token."),
    "curvature": ("nats", "Mean second difference of the forget NLL along random directions of 3 % "
                  "of each tensor's norm."),
    "slope_to_base": ("nats", "Fall of the forget NLL a tenth of the way to the base."),
    "fall_to_base": ("share", "Share of the fall to the base's forget NLL that is done half-way."),
}  # fmt: skip
"""Unit and meaning of each, by key."""

STEP = Step(
    number=19,
    folder="attack_free",
    question="What may tell, before any attack, how much an attack will bring back?",
    needs=("forget", "retain", "questions"),
    optional=True,
    memory="model_diffs.brittleness.memory:ATTACK_FREE",
    tables=(Table("attack_free"),),
    measures=tuple(
        Measure(
            key,
            axis="brittleness",
            table="attack_free",
            column="value",
            where={"measure": key},
            unit=unit,
            meaning=meaning,
            may_be_empty=True,
            undefined="not defined for this model",
        )
        for key, (unit, meaning) in MEASURES.items()
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Comparison, Pass):
    """What predicts attacks."""

    questions: str = option(help="JSONL of four-choice questions")
    removed: str = option("hazard", "domain of the questions on what was removed")
    max_questions: int = option(0, "questions of each other domain; 0 = all", check=natural)


def measures(pair: "Pair") -> list[dict[str, Any]]:
    """A row per measure."""
    from model_diffs.brittleness import attack_free

    rows = []
    for name in attack_free.NAMES:
        module: Any = importlib.import_module(f"{attack_free.__name__}.{name}")
        found = module.measure(pair)
        for one in module.MEASURES:
            # Undefined, such as an accuracy where nothing was asked: an empty cell.
            value = found[one.key] if math.isfinite(found[one.key]) else None
            rows.append({"measure": one.key, "value": value, "reads_base": one.reads_base})
    return rows


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Measure every changed model."""
    from model_diffs.activations import store
    from model_diffs.attacks import relearning
    from model_diffs.attacks.victim import Victim
    from model_diffs.brittleness.attack_free.pair import Pair
    from model_diffs.brittleness.reading import divided
    from model_diffs.data.questions import load_questions

    hazard, known = divided(
        load_questions(options.questions), options.removed, options.max_questions, options.seed
    )
    found = store.of_comparisons(options, todo)
    shared: dict[str, Any] = {}
    for planned in todo:
        with relearning.fitting_threads(planned.model_b, options.device), open_run(planned) as run:
            seed_everything(options.seed)
            pooled = {
                (split.name, which): found.models[split.name, model].read("pooled", "residual")
                for split in found.splits
                for which, model in (("base", planned.model_a), ("changed", planned.model_b))
            }
            victim = Victim(planned.model_b, {}, options, base=planned.model_a, seed=options.seed)
            pair = Pair(victim, hazard, known, pooled, shared, options.seed)
            run.table("attack_free", measures(pair))
            run.reads(options.questions)
            store.describe(run, found)


if __name__ == "__main__":
    run_step(__name__)
