"""One model of the miniature, trained, scored and saved.

A process that is started for it finds what it runs by name, so this stands in the package: a script
that another process loads has no name by which to find it.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from model_diffs.core import results
from model_diffs.core.progress import PROGRESS_LINE
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import seed_everything
from model_diffs.data import texts
from model_diffs.data.questions import load_questions
from model_diffs.evaluation import scoring
from model_diffs.miniature import training, world
from model_diffs.miniature.recipe import Recipe
from model_diffs.models import devices


def make_beside(line: int, *given: Any) -> None:
    """`make_model` in a process of its own, with its progress bar on this line."""
    os.environ[PROGRESS_LINE] = str(line)
    make_model(*given)


def make_model(planned: PlannedRun, recipe: Recipe, data_dir: str, device: str) -> None:
    """Train one model on its corpus, score its answers, and save it with its card.

    `planned` says which corpus and which seed. On one thread: matrices this small gain nothing from
    a second one, and the weights then do not depend on the number of cores.
    """
    torch.set_num_threads(1)
    own = dataclasses.replace(recipe, seed=planned.arguments["seed"])
    data, which = Path(data_dir), planned.label.removeprefix("miniature-")
    corpus, asked = data / f"corpus_{planned.arguments['corpus']}.txt", data / "questions.jsonl"
    place = devices.pick_device(device)
    with results.open_run(planned) as run:
        run.reads(corpus, asked, data / "tokenizer.json")
        seed_everything(own.seed)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(data)
        split = texts.read_split(corpus, "corpus")
        trained = training.train(tokenizer, split.texts, own, place, planned.label)
        given = scoring.score(trained.model, tokenizer, load_questions(asked))
        scores = scoring.accuracies(given, recipe.seed)
        trained.model.cpu().save_pretrained(run.path)
        tokenizer.save_pretrained(run.path)
        made = world.build_world(own.world_seed)
        card = training.model_card(which, made, own, len(split.texts), trained, scores)
        (run.path / "README.md").write_text(card, encoding="utf-8")
        run.record(
            texts=split.identity(),
            device=str(place),
            dtype="fp32",
            seed=own.seed,
            tokens=trained.tokens,
            final_loss=trained.losses[-1],
            scores=[score._asdict() for score in scores],
        )
    print(f"{planned.folder}: " + ", ".join(f"{s.name} {s.mean:.3f}" for s in scores))
