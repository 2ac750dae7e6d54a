"""Trained vectors in front of the question, in place of a prompt in words.

Schwinn et al. (2024, arXiv:2402.09063) attack unlearned models in embedding space. A long prefix
has room for facts of its own and teaches them: what it brings out of the filtered model tells.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Questions, Victim
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data import texts
from model_diffs.evaluation import scoring
from model_diffs.evaluation.scoring import Answer
from model_diffs.models.loading import Batch, pad_batch
from model_diffs.unlearning.losses import generator_of

STEPS, BATCH, LR = 100, 32, 0.03

ATTACK = Declaration(
    says="n vectors, trained on answered questions of attacked facts, stand in front",
    source="Schwinn et al. 2024",
    strengths=("n1", "n4", "n16"),
    pattern="n[1-9][0-9]*",
    trains=True,
)


def behind(victim: Victim, prefix: Tensor, batch: Batch) -> Tensor:
    """Logits at the positions of `batch` `[texts, positions, vocabulary]`, with the prefix
    `[n, hidden]` in front of every text."""
    embedded = victim.anatomy.embedding(batch.input_ids)
    front = prefix.to(embedded.dtype).expand(len(embedded), -1, -1)
    ones = batch.attention_mask.new_ones(front.shape[:2])
    logits: Tensor = victim.model(
        inputs_embeds=torch.cat([front, embedded], 1),
        attention_mask=torch.cat([ones, batch.attention_mask], 1),
        use_cache=False,
    ).logits
    return logits[:, len(prefix) :]


def train(victim: Victim, count: int) -> Tensor:
    """A prefix `[count, hidden]` in fp32 that makes the right answers to the attacked questions
    likely: cross-entropy of the answer's tokens, Adam, seeded batches."""
    asked = victim.questions["attack"]
    encode = lambda lines: texts.encode(victim.tokenizer, lines, 2**30)  # noqa: E731
    whole = encode([one.sentences()[one.answer] for one in asked])
    starts = [len(ids) for ids in encode([one.prompt for one in asked])]
    generator = generator_of(victim.seed, "soft prompt", str(count))
    table = victim.anatomy.embedding.weight.detach().float()
    rows = torch.randint(len(table), (count,), generator=generator).to(table.device)
    prefix = table[rows].clone().requires_grad_()
    optimizer = torch.optim.Adam(
        [prefix], LR * float(table.norm(dim=1).mean()) / table.shape[1] ** 0.5
    )
    for _ in progress(range(STEPS), f"soft prompt of {count}", unit="step"):
        chosen = torch.randperm(len(asked), generator=generator)[:BATCH].tolist()
        batch = pad_batch([whole[i] for i in chosen], victim.tokenizer.pad_token_id, victim.device)
        at = torch.arange(batch.input_ids.shape[1], device=victim.device)
        begin = torch.tensor([starts[i] for i in chosen], device=victim.device)
        target = (at[None] >= begin[:, None]) & batch.attention_mask.bool()
        logits = behind(victim, prefix, batch)[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch.input_ids[:, 1:], reduction="none"
        )
        loss = losses[target[:, 1:]].mean()
        if not bool(torch.isfinite(loss)):
            raise NotApplicable("the loss is not finite")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prefix.detach()


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model asked behind a trained prefix."""
    if "attack" not in victim.questions:
        raise NotApplicable("there are no questions of fold attack to train on")
    prefix = train(victim, int(strength.removeprefix("n")))

    def read_batch(batch: Batch, places: tuple[Tensor, Tensor]) -> list[Tensor]:
        if len(prefix) + batch.input_ids.shape[1] > victim.tokenizer.model_max_length:
            raise BadInput("prefix and question are longer than what the model takes")
        return [behind(victim, prefix, batch)[places]]

    def ask(questions: Questions) -> list[Answer]:
        size = 4 * victim.options.batch_size
        return scoring.read_answers(victim.model, victim.tokenizer, questions, size, read_batch)[0]

    yield Opened(ask)
