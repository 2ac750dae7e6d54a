"""Do facts that the attacker never had come back? Every country held out once, over seeds.

    uv run benchmarks/countries_attack.py --models unlearned_models/smollm2-135m-instruct__npo
    uv run benchmarks/countries_attack.py --arm facts retain --models MINE__seed42 MINE__seed43
    uv run benchmarks/countries_attack.py --data data/invented --base models/invented-base \\
        --lr 1e-4 --models unlearned_models/invented-base__npo

The studies `capitals` and `invented` hold out some countries, and the attack there ends as soon as
attacked facts are known, which on a trained model takes a few steps. Here the countries are dealt
into as many parts as there are turns; each part is held out once while the attacker trains on what
the forget set says of the others, for all of --steps. Per method and arm: accuracy on held-out
facts before and after, and the share of what was lost that comes back.

Models whose folders differ in `__seedN` alone are one method; the attack on each has its seed, and
--seed where it names none. Intervals resample countries and, independently, seeds (the pigeonhole
bootstrap: Owen 2007).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model_diffs.core import naming
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.options import natural, option, positive
from model_diffs.core.script import execute, run_script
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.data.questions import load_questions
from model_diffs.miniature.world import HAZARD
from model_diffs.stats.intervals import document_weights, percentile_interval
from model_diffs.stats.seeds import entry_of


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
        20, "training steps, whether or not attacked facts are known", check=positive
    )
    max_questions: int = option(10, "questions of the other groups", check=natural)
    seed: int = option(42, "seed of the parts and of the intervals", check=natural)
    place: str = option("artifacts/countries_attack", "folder of the results", written=True)


def named(line: str, countries: list[str]) -> str:
    """The country that a line is about: the longest name in it, so not Guinea for Guinea-Bissau."""
    found = [one for one in countries if re.search(rf"(?<!\w){re.escape(one)}(?!\w)", line)]
    if not found:
        raise BadInput(f"no country of the questions stands in {line!r}")
    return max(found, key=len)


def dealt(options: Options) -> list[Path]:
    """Folders with the texts and questions of each turn."""
    source, folders = Path(options.data), []
    asked = load_questions(source / "questions.jsonl")
    countries = sorted({one.entity for one in asked if one.domain == HAZARD})
    lines = (source / "forget.txt").read_text(encoding="utf-8").splitlines()
    about = [named(line, countries) for line in lines]
    order = Random(f"turns {options.seed}").sample(countries, len(countries))
    for turn in range(options.turns):
        folder = Path(options.place, f"seed{options.seed}", f"turn{turn}")
        held_out = set(order[turn :: options.turns])
        own = [line for line, one in zip(lines, about, strict=True) if one not in held_out]
        questions = [
            one._replace(fold="heldout" if one.entity in held_out else "attack")
            if one.domain == HAZARD
            else one
            for one in asked
        ]
        texts = {
            "attack.txt": own,
            "questions.jsonl": [json.dumps(one._asdict(), ensure_ascii=False) for one in questions],
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in texts.items():
            path, text = folder / name, "\n".join(content) + "\n"
            # A file that is as it should be is left alone: results made from it stay complete.
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
        folders.append(folder)
    return folders


def attacked(options: Options, model: str, folder: Path) -> pd.DataFrame:
    """Answers at every measured step of one turn."""
    out = folder / naming.model_label(model)
    of_model = re.search(r"__seed(\d+)$", out.name)
    seed = of_model[1] if of_model else str(options.seed)
    words = ["--model", model, "--base", options.base, "--outdir", str(out), "--seed", seed]
    words += ["--attack-data", str(folder / "attack.txt"), "--arm", *options.arm, "--until", "2"]
    words += ["--forget-text", f"{options.data}/forget.txt", "--max-lines", "4"]
    words += ["--retain-text", f"{options.data}/retain.txt", "--lr", str(options.lr)]
    words += ["--benign-text", f"{options.data}/benign.txt", "--steps", str(options.steps)]
    words += ["--eval-steps", f"0,{options.steps}", "--max-questions", str(options.max_questions)]
    words += ["--questions", str(folder / "questions.jsonl")]
    execute(load_script(SCRIPTS / "relearn.py"), words)
    return pd.read_csv(out / "per_question.csv").assign(label=out.name)


def by_seed(answers: pd.DataFrame) -> NDArray[np.float64]:
    """Accuracy on the held-out facts of each country: `[seeds, countries]`."""
    return answers.pivot_table(index="label", columns="entity", values="correct").to_numpy()


def row(
    base: pd.DataFrame, before: pd.DataFrame, after: pd.DataFrame, seed: int
) -> dict[str, float]:
    """Held-out facts before and after, over all turns and seeds."""
    # One rate is tried, so that nothing is chosen on the part of them that relearn.py calls tune.
    held = [by_seed(one[one["group"].isin(["heldout", "tune"])]) for one in (base, before, after)]
    seeds, countries = held[1].shape
    drawn = document_weights(countries, seed) / countries
    seeds_drawn = document_weights(seeds, seed + 1) / seeds
    known, start, end = held
    sides = [np.einsum("rs,sc,rc->r", seeds_drawn, one, drawn) for one in held]
    lost = sides[0] - sides[1]
    share = (end.mean() - start.mean()) / (known.mean() - start.mean())
    # Where nothing is lost there is no share: one such resample leaves its interval empty.
    back = (sides[2] - sides[1]) / np.where(lost > 0, lost, np.nan)
    gains = (end - start).mean(1)
    return {
        "seeds": seeds,
        "countries": countries,
        "base": known.mean(),
        **percentile_interval(start.mean(), sides[1]).cells("before"),
        **percentile_interval(end.mean(), sides[2]).cells("after"),
        **percentile_interval(gains.mean(), sides[2] - sides[1]).cells("gained"),
        "gained_std": gains.std(ddof=1) if seeds > 1 else np.nan,
        **percentile_interval(share, back).cells("share_back"),
        **{
            group: after.loc[after["group"] == group, "correct"].mean()
            for group in ("attack", "adjacent", "general")
        },
    }


def main() -> None:
    """Attack every model by turns, and print and write the table."""
    options = parse(Options, None, __doc__)
    folders, rows = dealt(options), []
    every = pd.concat(
        attacked(options, model, folder) for model in options.models for folder in folders
    )
    every["method"] = every["label"].map(entry_of)
    after = every[(every["arm"] != "before") & (every["step"] == options.steps)]
    for (method, arm), own in after.groupby(["method", "arm"], sort=False):
        mine = every[every["method"] == method]
        start = mine[(mine["arm"] == arm) & (mine["step"] == 0)]
        found = row(mine[mine["arm"] == "before"], start, own, options.seed)
        rows.append({"method": method, "arm": arm, "step": options.steps, **found})
    table = pd.DataFrame(rows)
    table.to_csv(Path(options.place, f"seed{options.seed}", "table.csv"), index=False)
    print(table.round(3).T.to_string(header=False))


if __name__ == "__main__":
    run_script(main)
