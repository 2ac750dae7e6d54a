"""Answers read inside the model: the output of a block goes through final norm and head.

nostalgebraist 2020, "interpreting GPT: the logit lens". What the last blocks hide may be read
before them. The block is chosen on fold `tune` like any strength.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Questions, Victim
from model_diffs.evaluation import logit_lens
from model_diffs.evaluation.scoring import Answer


def strengths(victim: Victim) -> list[str]:
    """Every block but the last, whose output is the model's own answer."""
    if victim.blocks < 2:
        raise NotApplicable("the model has one block: there is no inner one to read")
    return [f"block{i}" for i in range(victim.blocks - 1)]


ATTACK = Declaration(
    says="answers are read from the output of an inner block",
    source="nostalgebraist 2020",
    strengths=strengths,
    pattern="block[0-9]+",
)


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model as it is; one pass reads all blocks that will be asked for."""
    # State 0 is the embedding's output, state i + 1 that of block i.
    state = int(strength.removeprefix("block")) + 1
    if state >= victim.blocks:
        raise NotApplicable(f"the model has {victim.blocks - 1} inner blocks")
    every = victim.strengths or strengths(victim)
    states = sorted({int(one.removeprefix("block")) + 1 for one in every})

    def ask(questions: Questions) -> list[Answer]:
        key = " ".join(one.id for one in questions)
        model, size = victim.model, 4 * victim.options.batch_size

        def read() -> list[list[Answer]]:
            return logit_lens.answers_by_layer(
                model, victim.tokenizer, questions, size, states=states
            )

        return victim.once(key, read)[states.index(state)]

    yield Opened(ask)
