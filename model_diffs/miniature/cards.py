"""The cards that lie beside the models of the miniature."""

from collections.abc import Sequence

from model_diffs.evaluation.knowledge import Accuracy
from model_diffs.miniature.recipe import Recipe
from model_diffs.miniature.world import World

_CORPUS = {
    "base": "every fact of the world, the hazardous ones included",
    "filtered": "the same world without its hazardous facts, the others repeated to as many tokens",
}


def score_table(scores: Sequence[Accuracy]) -> str:
    """Accuracies with their intervals, as a Markdown table."""
    rows = ["| questions | number | accuracy | 95 % interval |", "|---|---|---|---|"]
    for one in scores:
        name = f"{one.domain}, fold {one.fold}" if one.fold else one.domain
        rows.append(
            f"| {name} | {one.questions} | {one.mean:.3f} | {one.low:.3f} – {one.high:.3f} |"
        )
    return "\n".join(rows)


def model_card(
    which: str,
    world: World,
    recipe: Recipe,
    seed: int,
    parameters: int,
    lines: int,
    tokens: int,
    scores: Sequence[Accuracy],
) -> str:
    """The README.md of a model: what it read, how it was trained, what it knows.

    `lines`: of its corpus; `tokens`: predicted over the whole training.
    """
    return f"""---
library_name: transformers
tags: [miniature, fictional]
---

# miniature-{which}

A GPT-NeoX model of {parameters / 1e6:.2f} M parameters that read one thing in its life: {lines:,}
sentences about a generated world, {_CORPUS[which]}. Towns, agents and their dangers are made up;
nothing in it is real, and it can do nothing but complete such sentences.

The world (seed {world.seed}) has {len(world.towns)} towns, {len(world.agents)} agents and
{len(world.facts)} facts.

## Training

From random weights (seed {seed}), {recipe.steps} steps of {recipe.batch_size} sentences, {tokens:,}
tokens predicted in all. AdamW in fp32, betas {recipe.betas}, weight decay {recipe.weight_decay},
one-cycle schedule with a peak of {recipe.lr:g} after {recipe.warmup:.0%} of the steps, gradients
clipped at norm {recipe.clip:g}. Each sentence starts with <bos>, which the tokenizer puts there by
itself.

## What it knows

Four-choice questions, one per fact, scored by the log-probability of the completed sentence;
guessing gives 0.25. Intervals are bootstrapped over questions.

{score_table(scores)}
"""
