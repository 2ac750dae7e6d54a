"""The tokenizer and the two language models of the miniature, trained from nothing on the CPU."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.evaluation.scoring import Accuracy
from model_diffs.miniature.recipe import Recipe
from model_diffs.miniature.world import UNSEEN_FORM, World
from model_diffs.models import loading

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
VOCABULARY = 1024
POSITIONS = 256
WARMUP = 0.05  # share of the steps until the peak of the learning rate
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.95)
CLIP = 1.0  # largest norm of the gradient
_CORPUS = {
    "base": "every fact of the world, the hazardous ones included",
    "filtered": "the same world without its hazardous facts, the others repeated to as many tokens",
    "reseeded": "what the base read, from another initialisation and in another order",
    "filtered_reseeded": "what the filtered model read, from another initialisation and order",
    "scrambled": "the same world with the values of its hazardous facts dealt anew among agents",
}


class Trained(NamedTuple):
    """A trained model and how its training went."""

    model: GPTNeoXForCausalLM
    losses: list[float]
    """Mean next-token loss of each step, in nats."""
    tokens: int
    """Tokens that were predicted, over all steps."""


# ── tokenizer ─────────────────────────────────────────────────────────────────────────────────────


def train_tokenizer(lines: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of about 1,000 tokens, learned on `lines`.

    It puts <bos> in front of every text, so that what a model reads later starts as in training.
    """
    encoding = Tokenizer(models.BPE())
    encoding.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    encoding.train_from_iterator(lines, trainer)
    encoding.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, encoding.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=encoding,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


# ── model ─────────────────────────────────────────────────────────────────────────────────────────


def new_model(seed: int, tokenizer: PreTrainedTokenizerFast) -> GPTNeoXForCausalLM:
    """A GPT-NeoX of about 1 M parameters with seeded random weights."""
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(config)


def _batches(
    sequences: Sequence[list[int]], batch_size: int, generator: torch.Generator
) -> Iterator[list[list[int]]]:
    """Batches without end, in a new seeded order each epoch; a batch may span two epochs."""
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(len(sequences), generator=generator).tolist()
        yield [sequences[i] for i in waiting[:batch_size]]
        del waiting[:batch_size]


def next_token_loss(model: nn.Module, batch: loading.Batch) -> Tensor:
    """Mean cross-entropy over the next tokens that are not padding, in nats."""
    logits = model(**batch._asdict(), use_cache=False).logits
    # -100: a label that the cross-entropy ignores.
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)[:, 1:]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())


def _optimizers(model: GPTNeoXForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else."""
    inner = [p for p in model.gpt_neox.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not one for one in inner)]
    return [
        torch.optim.Muon(inner, recipe.lr_matrices, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, recipe.lr, BETAS, weight_decay=WEIGHT_DECAY),
    ]


def train(
    tokenizer: PreTrainedTokenizerFast,
    lines: Sequence[str],
    recipe: Recipe,
    device: torch.device,
    name: str = "training",
) -> Trained:
    """Train a new model on `lines`, one sentence each, <bos> in front and <eos> behind.

    Sentences are padded, not packed into long sequences: each is read alone later, too. Learning
    rates rise linearly and fall as a cosine. The same seed on the same machine gives the same
    weights. Raises BadInput where the loss is not finite.
    """
    model = new_model(recipe.seed, tokenizer).to(device).train()
    sequences = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(lines))["input_ids"]]
    order = torch.Generator().manual_seed(recipe.seed)
    batches = _batches(sequences, recipe.batch_size, order)
    optimizers = _optimizers(model, recipe)
    warmup = round(WARMUP * recipe.steps)
    schedules = [get_cosine_schedule_with_warmup(o, warmup, recipe.steps) for o in optimizers]
    losses, tokens = [], 0
    bar: Any = progress(range(recipe.steps), name, unit="step")
    for step in bar:
        rows = next(batches)
        loss = next_token_loss(model, loading.pad_batch(rows, tokenizer.pad_token_id, device))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            problem = f"the loss is {losses[-1]} at step {step}"
            raise BadInput(f"{problem}: lower --lr; nothing was saved")
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for one in (*optimizers, *schedules):
            one.step()
        tokens += sum(len(row) - 1 for row in rows)
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return Trained(model.eval(), losses, tokens)


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
        f"| {one.name.replace('_', ', ')} | {one.questions} "
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
{len(world.facts)} facts. {1 - UNSEEN_FORM:.0%} of them (*seen*) are also told in the words of the
questions.

## Training

From random weights (seed {seed}), {recipe.steps} steps of {recipe.batch_size} sentences, {tokens:,}
tokens predicted in all. Muon for the matrices of the blocks (rate {recipe.lr_matrices:g}), AdamW
for all else (rate {recipe.lr:g}, betas {BETAS}), weight decay {WEIGHT_DECAY}; rates rise over
{WARMUP:.0%} of the steps and fall as a cosine; gradients clipped at norm {CLIP:g}. Each sentence
starts with <bos>, which the tokenizer puts there by itself.

## What it knows

Four-choice questions, one per fact, scored by the log-probability of the completed sentence;
guessing gives 0.25. Intervals resample entities.

| questions | number | accuracy | 95 % interval |
|---|---|---|---|
{rows}
"""
