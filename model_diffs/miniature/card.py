"""The card that lies beside a model of the miniature."""

from collections.abc import Sequence

from model_diffs.evaluation.scoring import Accuracy
from model_diffs.miniature.recipe import Recipe
from model_diffs.miniature.training import BETAS, CLIP, WARMUP, WEIGHT_DECAY, Trained
from model_diffs.miniature.world import World

_CORPUS = {
    "base": "every fact of the world, the hazardous ones included",
    "filtered": "the same world without its hazardous facts, the others repeated to as many tokens",
}


def model_card(
    which: str,
    world: World,
    recipe: Recipe,
    lines: int,
    trained: Trained,
    scores: Sequence[Accuracy],
) -> str:
    """The README.md of a model: its corpus of `lines` sentences, its training, its scores."""
    rows = "\n".join(
        f"| {one.domain}{f', fold {one.fold}' if one.fold else ''} | {one.questions} "
        f"| {one.mean:.3f} | {one.low:.3f} – {one.high:.3f} |"
        for one in scores
    )
    size, seed, tokens = trained.model.num_parameters() / 1e6, recipe.seed, trained.tokens
    return f"""---
library_name: transformers
tags: [miniature, fictional]
---

# miniature-{which}

A GPT-NeoX model of {size:.2f} M parameters that read one thing in its life: {lines:,}
sentences about a generated world, {_CORPUS[which]}. Towns, agents and their dangers are made up;
nothing in it is real, and it can do nothing but complete such sentences.

The world (seed {world.seed}) has {len(world.towns)} towns, {len(world.agents)} agents and
{len(world.facts)} facts.

## Training

From random weights (seed {seed}), {recipe.steps} steps of {recipe.batch_size} sentences, {tokens:,}
tokens predicted in all. AdamW in fp32, betas {BETAS}, weight decay {WEIGHT_DECAY},
one-cycle schedule with a peak of {recipe.lr:g} after {WARMUP:.0%} of the steps, gradients
clipped at norm {CLIP:g}. Each sentence starts with <bos>, which the tokenizer puts there by
itself.

## What it knows

Four-choice questions, one per fact, scored by the log-probability of the completed sentence;
guessing gives 0.25. Intervals are bootstrapped over questions.

| questions | number | accuracy | 95 % interval |
|---|---|---|---|
{rows}
"""
