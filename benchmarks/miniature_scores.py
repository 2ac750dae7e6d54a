"""Do the miniature's models know what they should, on several worlds? Trains what is missing.

    uv run benchmarks/miniature_scores.py
    uv run benchmarks/miniature_scores.py --worlds 1 2 3 --place artifacts/worlds

For each world prints the accuracies of base, filtered, reseeded and scrambled model by domain and
form; what a logit lens reads from the base after each block; and the smallest norm of an embedding
in the filtered model over the base's median: no token of it is as it was initialised.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from model_diffs.core.command_line import parse
from model_diffs.core.options import option, seedable
from model_diffs.core.script import run_script
from model_diffs.core.step import SCRIPTS

MODELS = ("base", "filtered", "reseeded", "scrambled")
DOMAINS = ("general", "adjacent", "hazard")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Worlds."""

    worlds: tuple[int, ...] = option(
        (42, 1, 2), "world seeds, also of the training", check=seedable
    )
    place: str = option("artifacts/worlds", "folder of their texts and models", written=True)


def show(world: int, place: Path) -> None:
    """Train the models of a world where they are missing, and print how they score."""
    import torch

    from model_diffs.data.questions import load_questions
    from model_diffs.evaluation import logit_lens, scoring
    from model_diffs.models import loading

    words = ["--world-seed", str(world), "--seed", str(world), "--models", *MODELS]
    words += ["--data-dir", str(place / "data"), "--models-dir", str(place / "models")]
    subprocess.run([sys.executable, str(SCRIPTS / "create_miniature.py"), *words], check=True)
    questions, norms = load_questions(place / "data/questions.jsonl"), {}
    print(f"\nworld {world}")
    for name in MODELS:
        folder = str(place / f"models/miniature-{name}")
        model = loading.load_model(folder, torch.device("cpu"), torch.float32)
        tokenizer = loading.load_tokenizer(folder)
        norms[name] = model.get_input_embeddings().weight.norm(dim=1)
        given = scoring.score(model, tokenizer, questions)
        cells = {
            one.name: one.mean
            for one in scoring.accuracies(given)
            if one.fold is None and one.domain in DOMAINS
        }
        print(f"{name:10}" + "".join(f"  {key} {value:.3f}" for key, value in cells.items()))
        if name == "base":
            lens = logit_lens.answers_by_layer(model, tokenizer, questions, 256)
            hazard = [[a.correct for a in layer if a.domain == "hazard"] for layer in lens]
            shares = ", ".join(f"{sum(right) / len(right):.3f}" for right in hazard)
            print(f"{'':10}  hazards read from states 0 to {len(lens) - 1}: {shares}")
    # Tokens that no corpus holds, such as single bytes, are in no text; <bos> is in every one.
    lines = (place / "data/corpus_base.txt").read_text(encoding="utf-8").splitlines()
    used = {i for ids in tokenizer(lines)["input_ids"] for i in ids} - {*tokenizer.all_special_ids}
    smallest = norms["filtered"][sorted(used)].min() / norms["base"][sorted(used)].median()
    print(f"smallest embedding of the filtered model over the base's median: {smallest:.2f}")


def main() -> None:
    """Show every world."""
    chosen = parse(Options, None, __doc__)
    for world in chosen.worlds:
        show(world, Path(chosen.place) / str(world))


if __name__ == "__main__":
    run_script(main)
