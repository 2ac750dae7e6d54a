"""The texts and questions of both studies, from what a model knows."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute
from model_diffs.core.results import Run
from model_diffs.countries import facts, invented, texts
from model_diffs.countries.known import Asked, known
from model_diffs.miniature.world import ADJACENT, GENERAL, HAZARD
from model_diffs.models import loading
from model_diffs.models.checkpoints import Checkpoint

LEAST = 10
"""Known capitals of the forgotten continents below which there is nothing to study."""
REAL_TOKENS = 500
"""Tokens of prose that invented facts are taught beside."""


def _asked(
    options: Compute, model: str, every: Sequence[facts.Fact], seed: int, run: Run
) -> tuple[list[facts.Fact], list[Asked], Any]:
    run.reads(*Checkpoint.open(model).files)
    tokenizer = loading.load_tokenizer(model, options.trust_remote_code)
    found, counts = known(loading.load_for(options, model), tokenizer, every, seed)
    for one in counts:
        print(f"{one.domain} {one.relation}: {one.known} of {one.asked} known in both forms")
    return found, counts, tokenizer


def write_capitals(
    options: Compute, seed: int, model: str, forget: Sequence[str], run: Run
) -> None:
    """Ask for capitals and what is adjacent to them, and write what is known.

    Raises BadInput where the model knows too few capitals of the forgotten continents.
    """
    every = facts.countries()
    near = [one for one in every if one.continent in forget]
    elsewhere = [name for name in facts.CONTINENTS if name not in forget]
    asked = [
        *facts.capitals(every, forget, HAZARD),
        *facts.capitals(every, elsewhere, GENERAL),
        *(fact for one in near for fact in facts.facts_of(one, every, ADJACENT)),
    ]
    found, counts, _ = _asked(options, model, asked, seed, run)
    hazards = sum(fact.domain == HAZARD for fact in found)
    if hazards < LEAST:
        raise BadInput(
            f"{model} knows {hazards} capitals of {', '.join(forget)}: at least {LEAST} are "
            "needed; name other continents with --forget, or another --model"
        )
    lines = texts.write(run.path, texts.lines_of(found, every, forget, seed))
    run.record(seed=seed, asked=[one._asdict() for one in counts], lines=lines)


def write_invented(
    options: Compute, seed: int, model: str, forget: Sequence[str], run: Run
) -> None:
    """Invent countries; write the corpora that tell of them, texts and questions.

    General questions are about real capitals that the model knows. Each is told, too, in one of the
    statements by turns.
    """
    every = facts.countries()
    asked = facts.capitals(every, [*facts.CONTINENTS], GENERAL)
    found, counts, tokenizer = _asked(options, model, asked, seed, run)
    world = invented.build_world(seed, tokenizer)
    told = [
        fact.told(form)
        for fact, form in zip(found, itertools.cycle(facts.STATEMENTS[facts.CAPITAL]), strict=False)
    ]
    real = [*told, *invented.prose(REAL_TOKENS, tokenizer)]
    files = invented.lines_of(world, real, seed)
    general = texts.asked(found, seed)
    given = [*invented.questions(world, seed), *general]
    files["questions.jsonl"] = [json.dumps(one._asdict(), ensure_ascii=False) for one in given]
    lines = texts.write(run.path, files)
    run.record(seed=seed, asked=[one._asdict() for one in counts], lines=lines)
