"""What can be known about held-out hazards without a model? Predictors that only read attack texts.

    uv run benchmarks/miniature_leaks.py
    uv run benchmarks/miniature_leaks.py --worlds 200

In each of the worlds, three readers of the attacked facts answer the questions on held-out agents:
the commonest value among the attacked facts, the rarest, and the commonest among attacked agents
who share a part of the name, for the same relation. Each should be right one time in four. Beside
the questions as they are written, every set of three wrong choices is counted, ties shared, which
has less chance in it. Prints means over worlds with their standard errors, agents in two folds,
and tokens that only one of the base's and the filtered model's corpus holds.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean as mean
from statistics import stdev

from model_diffs.core.command_line import parse
from model_diffs.core.options import option, positive
from model_diffs.core.progress import progress
from model_diffs.core.script import run_script
from model_diffs.miniature import corpora, training, world
from model_diffs.miniature.world import ATTACK, HAZARD, HELDOUT, Fact, World

Score = Callable[[str], float]
"""How much a predictor likes a value."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Worlds."""

    worlds: int = option(40, "number of world seeds, from 0", check=positive)


def predictors(attacked: list[Fact], entity: str, relation: str) -> dict[str, Score]:
    """What each reader of the attacked facts expects of one question."""
    counts = Counter(fact.value for fact in attacked)
    parts = set(entity.split())
    near = Counter(
        fact.value
        for fact in attacked
        if fact.relation == relation and not parts.isdisjoint(fact.entity.split())
    )
    return {
        "commonest value": counts.__getitem__,
        "rarest value": lambda value: -counts[value],
        "nearest agents": near.__getitem__,
    }


def over_all_choices(values: list[str], truth: str, score: Score) -> float:
    """Share of all sets of three wrong choices among which the true value is liked most."""
    own = score(truth)
    others = [score(value) for value in values if value != truth]
    return mean(
        (max(three) <= own) / (1 + three.count(own)) for three in itertools.combinations(others, 3)
    )


def world_rows(made: World) -> dict[tuple[str, str], float]:
    """Accuracy of each predictor: on the questions, and over all sets of wrong choices."""
    attacked = made.of(HAZARD, fold=ATTACK)
    right: dict[tuple[str, str], list[float]] = {}
    for question in (one for one in corpora.make_questions(made) if one.fold == HELDOUT):
        truth = question.choices[question.answer]
        for name, score in predictors(attacked, question.entity, question.relation).items():
            picked = max(question.choices, key=score)
            right.setdefault((name, "questions"), []).append(float(picked == truth))
            share = over_all_choices(made.values, truth, score)
            right.setdefault((name, "all choices"), []).append(share)
    return {key: mean(values) for key, values in right.items()}


def main() -> None:
    """Print the means over worlds."""
    count = parse(Options, None, __doc__).worlds
    rows, agents, tokens = [], 0, 0
    for seed in progress(range(count), "worlds"):
        made = world.build_world(seed)
        rows.append(world_rows(made))
        folds = {(fact.entity, fact.fold) for fact in made.of(HAZARD)}
        agents += len(folds) - len(made.agents)
        base = corpora.base_corpus(made)
        tokenizer = training.train_tokenizer(base)
        total = sum(corpora.count_tokens(tokenizer, base))
        filtered = corpora.filtered_corpus(made, total, tokenizer)
        read = [{i for ids in tokenizer(c)["input_ids"] for i in ids} for c in (base, filtered)]
        tokens += len(read[0] ^ read[1])
    print(f"{count} worlds{'':18} {'mean':>8} {'error':>8}")
    for name, way in rows[0]:
        values = [row[name, way] for row in rows]
        error = stdev(values) / count**0.5
        print(f"{name:16} {way:12} {mean(values):8.4f} {error:8.4f}")
    print(f"agents in two folds: {agents}\ntokens of one corpus only: {tokens}")


if __name__ == "__main__":
    run_script(main)
