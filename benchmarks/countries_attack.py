"""Do capitals that the attacker never had come back? Every country held out once, by turns.

    uv run benchmarks/countries_attack.py --models unlearned_models/smollm2-135m-instruct__npo
    uv run benchmarks/countries_attack.py --arm facts retain --steps 20 --models MINE MINE__seed43

The study `capitals` holds out a dozen countries, and the attack there ends as soon as attacked
facts are known, which on a trained model takes a few steps. Here the countries are dealt into as
many parts as there are turns; each part is held out once while the attacker trains on the others,
for all of --steps. Per model and arm: accuracy on held-out capitals before and after, and the share
of what was lost that comes back, with intervals that resample countries. Models whose folders
differ in `__seedN` alone are one method: a country's accuracy is the mean over them.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from model_diffs.core import naming
from model_diffs.core.command_line import parse
from model_diffs.core.options import natural, option, positive
from model_diffs.core.script import execute, run_script
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.countries.facts import CAPITAL, Fact
from model_diffs.countries.texts import permuted, shuffled, statements
from model_diffs.data.questions import load_questions
from model_diffs.miniature.world import HAZARD
from model_diffs.stats.intervals import document_weights, percentile_interval


@dataclass(frozen=True, kw_only=True)
class Options:
    """The attack by turns."""

    models: tuple[str, ...] = option(help="models that are attacked")
    base: str = option("models/smollm2-135m-instruct", "the model before")
    data: str = option("data/capitals", "folder of the texts and questions")
    arm: tuple[str, ...] = option(("facts",), "what the attacker trains on, as in relearn.py")
    turns: int = option(3, "parts that the countries are dealt into", check=positive)
    lr: float = option(5e-5, "learning rate", check=positive)
    steps: int = option(
        40, "training steps, whether or not attacked facts are known", check=positive
    )
    max_questions: int = option(10, "questions of the other groups", check=natural)
    seed: int = option(42, "seed of the parts and of the training", check=natural)
    place: str = option("artifacts/countries_attack", "folder of the results", written=True)


def dealt(options: Options) -> list[Path]:
    """Folders with the texts and questions of each turn."""
    source, folders = Path(options.data), []
    asked = load_questions(source / "questions.jsonl")
    facts = {
        one.entity: Fact(HAZARD, CAPITAL, one.entity, one.choices[one.answer], ())
        for one in asked
        if one.domain == HAZARD
    }
    order = random.Random(f"turns {options.seed}").sample(sorted(facts), len(facts))
    for turn in range(options.turns):
        folder = Path(options.place, f"seed{options.seed}", f"turn{turn}")
        folder.mkdir(parents=True, exist_ok=True)
        held_out = set(order[turn :: options.turns])
        own = [fact for name, fact in facts.items() if name not in held_out]
        dealt_out = [
            one._replace(fold="heldout" if one.entity in held_out else "attack")
            if one.domain == HAZARD
            else one
            for one in asked
        ]
        texts = {
            "attack.txt": shuffled(statements(own), f"attack {options.seed}"),
            "permuted.txt": shuffled(statements(permuted(own, turn)), f"permuted {options.seed}"),
            "questions.jsonl": [json.dumps(q._asdict(), ensure_ascii=False) for q in dealt_out],
        }
        for name, content in texts.items():
            path, text = folder / name, "\n".join(content) + "\n"
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
        folders.append(folder)
    return folders


def attacked(options: Options, model: str, folder: Path) -> pd.DataFrame:
    """Answers at every measured step of one turn."""
    out = folder / naming.model_label(model)
    middle = max(1, options.steps // 4)
    words = ["--model", model, "--base", options.base, "--outdir", str(out)]
    words += ["--attack-data", str(folder / "attack.txt"), "--arm", *options.arm]
    words += ["--permuted-text", str(folder / "permuted.txt"), "--until", "2"]
    words += ["--forget-text", f"{options.data}/forget.txt", "--max-lines", "4"]
    words += ["--retain-text", f"{options.data}/retain.txt", "--lr", str(options.lr)]
    words += ["--benign-text", f"{options.data}/benign.txt", "--steps", str(options.steps)]
    words += ["--eval-steps", f"0,{middle},{options.steps}", "--seed", str(options.seed)]
    words += ["--questions", str(folder / "questions.jsonl")]
    words += ["--max-questions", str(options.max_questions)]
    execute(load_script(SCRIPTS / "relearn.py"), words)
    return pd.read_csv(out / "per_question.csv").assign(turn=folder.name)


def row(model: str, arm: str, step: int, answers: pd.DataFrame, seed: int) -> dict[str, object]:
    """Held-out capitals before and after, over all turns and seeds, countries resampled."""
    # One rate is tried, so that nothing is chosen on the part of them that relearn.py calls tune.
    held = answers[answers["group"].isin(["heldout", "tune"])]
    sides = [
        held[held["step"] == at].groupby("entity")["correct"].mean().sort_index()
        for at in (0, step)
    ]
    before, after = (one.to_numpy() for one in sides)
    drawn = document_weights(len(before), seed) / len(before)
    gained = percentile_interval(after.mean() - before.mean(), drawn @ (after - before))
    lost = drawn @ (1 - before)
    share = (after.mean() - before.mean()) / max(1 - before.mean(), 1e-9)
    back = percentile_interval(share, (drawn @ (after - before)) / np.maximum(lost, 1e-9))
    other = answers[answers["step"] == step]
    return {
        "model": model,
        "arm": arm,
        "step": step,
        "seeds": answers["label"].nunique(),
        "countries": len(before),
        "before": before.mean(),
        "after": after.mean(),
        **gained.cells("gained"),
        **back.cells("share_back"),
        "attacked": other.loc[other["group"] == "attack", "correct"].mean(),
        "general": other.loc[other["group"] == "general", "correct"].mean(),
    }


def main() -> None:
    """Attack every model by turns, and print and write the table."""
    options = parse(Options, None, __doc__)
    folders, rows = dealt(options), []
    every = pd.concat(
        attacked(options, model, folder).assign(label=naming.model_label(model))
        for model in options.models
        for folder in folders
    )
    every["method"] = every["label"].str.replace(r"__seed\d+$", "", regex=True)
    after = every[(every["arm"] != "before") & (every["step"] > 0)]
    for (method, arm, step), own in after.groupby(["method", "arm", "step"], sort=False):
        of = (every["method"] == method) & (every["arm"] == arm)
        start = every[of & (every["step"] == 0)]
        rows.append(row(method, arm, step, pd.concat([start, own]), options.seed))
    table = pd.DataFrame(rows)
    table.to_csv(Path(options.place, f"seed{options.seed}", "table.csv"), index=False)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    run_script(main)
