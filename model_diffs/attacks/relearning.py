"""The relearning attack: train a copy of a model on some facts, ask it about the others.

Whoever attacks an unlearned model has some of the removed knowledge. What comes back beyond that
was in the weights all along. Fine-tuning is plain: AdamW at a constant rate, so that the state
after s steps does not depend on how many follow, and the same batches for every model and rate.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data import texts
from model_diffs.data.texts import Split
from model_diffs.evaluation import knowledge
from model_diffs.evaluation.knowledge import Question
from model_diffs.models.devices import DTYPES, pick_device
from model_diffs.models.loading import load_model, load_tokenizer
from model_diffs.stats import intervals
from model_diffs.stats.intervals import Interval
from model_diffs.unlearning.adapters import Adapter
from model_diffs.unlearning.data import plan_epoch, split_batch
from model_diffs.unlearning.losses import nll
from model_diffs.unlearning.network import Network

GROUPS = ("heldout", "attack", "general", "adjacent")
SPLITS = ("forget", "retain")
SHARE_ATTACKED = 0.8
GRAD_CLIP = 1.0


@dataclass(frozen=True)
class Settings:
    """Numbers of one attack."""

    steps: int
    eval_steps: tuple[int, ...]
    """Steps after which it is measured, rising, 0 (before the first) among them."""
    batch_size: int
    max_length: int
    lora_rank: int = 0
    dtype: str = "auto"
    """Of the weights; auto: fp32, under bf16 autocast on cuda."""
    device: str = "auto"
    trust_remote_code: bool = False
    seed: int = 42


class Material(NamedTuple):
    """What the attacker trains on, and what is measured."""

    attack: list[str]
    forget: list[str]
    """Forget lines that the attacker never sees."""
    retain: list[str]
    questions: dict[str, list[Question]]
    """By group, of `GROUPS`; empty without questions."""


class Paths(NamedTuple):
    """The files of `Material`."""

    forget: str
    retain: str
    attack: str | None
    questions: str | None


class Measured(NamedTuple):
    """A model at one step. Intervals are over questions and over documents."""

    tokens: int
    """Trained on so far, repeats counted."""
    correct: dict[str, NDArray[np.float64]]
    """Per group, 1 for each question answered rightly."""
    accuracy: dict[str, Interval]
    nll: dict[str, Interval]
    """Per split, nats per token."""


# ── what is attacked and what is measured ─────────────────────────────────────────────────────────


def divide(forget: Split, attack: Split | None, seed: int) -> tuple[list[str], list[str]]:
    """The lines that are attacked and the forget lines that are measured.

    Without `attack`, a seeded 80 % of the forget lines is attacked. With it, the forget lines that
    it does not hold are measured. Raises BadInput where nothing is left to measure.
    """
    if attack is None:
        lines = list(dict.fromkeys(forget.texts))
        chosen = random.Random(f"{seed} attacked").sample(lines, round(SHARE_ATTACKED * len(lines)))
        attacked = set(chosen)
        kept = [line for line in lines if line not in attacked]
    else:
        attacked = set(attack.texts)
        chosen, kept = attack.texts, [line for line in forget.texts if line not in attacked]
    if not chosen or not kept:
        raise BadInput(
            f"{forget.path}: no line of it is left to measure beside those that are attacked; give "
            "--forget-data with lines that the attacker does not have"
        )
    return chosen, kept


def _subset(items: Sequence[Any], most: int, seed: str) -> list[Any]:
    """A seeded choice of at most `most` (0 = all), in their order."""
    if not most or len(items) <= most:
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), most))
    return [items[i] for i in chosen]


def group_questions(
    questions: Sequence[Question], most: int, seed: int
) -> dict[str, list[Question]]:
    """Questions by group: their fold where they have one, else their domain.

    All that are held out, which are the result, and at most `most` of each other group (0 = all).
    Raises BadInput where none is of fold `heldout`.
    """
    groups = {
        group: _subset(
            [q for q in questions if (q.fold or q.domain) == group],
            0 if group == "heldout" else most,
            f"{seed} {group}",
        )
        for group in GROUPS
    }
    if not groups["heldout"]:
        raise BadInput(
            "--questions: none is of fold 'heldout'; mark those whose facts the attack texts do "
            "not state, or leave --questions out"
        )
    return {group: asked for group, asked in groups.items() if asked}


def read_material(paths: Paths, max_lines: int, max_questions: int, seed: int) -> Material:
    """Texts and questions; BadInput for damaged files and for a retain line that is attacked."""
    forget, retain = _read_split(paths.forget, "forget"), _read_split(paths.retain, "retain")
    attack = _read_split(paths.attack, "attack") if paths.attack else None
    texts.check_disjoint(attack or forget, retain)
    attacked, kept = divide(forget, attack, seed)
    measured = [
        _subset(lines, max_lines, f"{seed} {split} lines")
        for split, lines in (("forget", kept), ("retain", retain.texts))
    ]
    questions = knowledge.load_questions(paths.questions) if paths.questions else []
    groups = group_questions(questions, max_questions, seed) if questions else {}
    return Material(attacked, measured[0], measured[1], groups)


def _read_split(path: str, name: str) -> Split:
    try:
        return texts.read_split(path, name)
    except BadInput as error:
        # Everywhere else these options end in -text.
        raise BadInput(str(error).replace(f"--{name}-text", f"--{name}-data")) from error


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


class _Encoded(NamedTuple):
    attack: list[list[int]]
    measured: dict[str, list[list[int]]]
    pad_id: int


def _encode(
    model: str, network: Network, tokenizer: Any, material: Material, longest: int
) -> _Encoded:
    """Token ids; texts of one token predict nothing and are left out."""
    limit = getattr(network.model.config.get_text_config(), "max_position_embeddings", None)
    found = []
    for name in ("attack", *SPLITS):
        ids = texts.encode(tokenizer, getattr(material, name), min(longest, limit or longest))
        found.append([one for one in ids if len(one) > 1])
        if not found[-1]:
            raise BadInput(f"{model}: the {name} texts are single tokens: nothing to predict")
    return _Encoded(found[0], dict(zip(SPLITS, found[1:], strict=True)), tokenizer.pad_token_id)


@torch.no_grad()
def document_nll(
    network: Network, sequences: Sequence[list[int]], batch_size: int, pad_id: int, seed: int
) -> Interval:
    """NLL per next-token prediction, nats, with documents resampled for its interval."""
    device = next(network.parameters()).device
    sums = np.empty(len(sequences))
    for rows in texts.length_batches([len(ids) for ids in sequences], batch_size):
        batch = split_batch(sequences, rows, pad_id, device)
        sums[rows] = -network.log_probs(batch).sums.cpu().double().numpy()
    return intervals.ratio_interval(sums, [len(ids) - 1 for ids in sequences], seed)


def _autocast(settings: Settings, device: torch.device) -> AbstractContextManager[Any]:
    if settings.dtype == "auto" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def _measure(
    network: Network,
    tokenizer: Any,
    encoded: _Encoded,
    material: Material,
    settings: Settings,
    tokens: int,
) -> Measured:
    asked = [question for group in material.questions.values() for question in group]
    size = 4 * settings.batch_size
    device = next(network.parameters()).device
    with _autocast(settings, device):
        given = knowledge.score(network.model, tokenizer, asked, size) if asked else []
        measured = {
            split: document_nll(network, ids, size, encoded.pad_id, settings.seed)
            for split, ids in encoded.measured.items()
        }
    correct, start = {}, 0
    for group, questions in material.questions.items():
        rows = given[start : start + len(questions)]
        correct[group] = np.array([answer.correct for answer in rows], dtype=np.float64)
        start += len(questions)
    accuracy = {g: intervals.mean_interval(values, settings.seed) for g, values in correct.items()}
    return Measured(tokens, correct, accuracy, measured)


# ── attacking ─────────────────────────────────────────────────────────────────────────────────────


def _batches(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of texts, epoch after epoch without end; the same for every model and rate."""
    for epoch in itertools.count():
        for step in plan_epoch(lengths, [], batch_size, seed, epoch):
            yield step.forget


class _Victim(NamedTuple):
    network: Network
    tokenizer: Any
    encoded: _Encoded


def _load(model: str, material: Material, settings: Settings) -> _Victim:
    device = pick_device(settings.device)
    dtype = DTYPES["fp32" if settings.dtype == "auto" else settings.dtype]
    # Evaluation mode throughout: dropout would make two runs of one attack differ in kind.
    network = Network(load_model(model, device, dtype, settings.trust_remote_code))
    tokenizer = load_tokenizer(model, settings.trust_remote_code)
    encoded = _encode(model, network, tokenizer, material, settings.max_length)
    return _Victim(network, tokenizer, encoded)


def measure(model: str, material: Material, settings: Settings) -> Measured:
    """A model as it is, before any attack."""
    victim = _load(model, material, settings)
    return _measure(*victim, material, settings, 0)


def attack(
    model: str, material: Material, lr: float, settings: Settings, start: Measured
) -> dict[int, Measured]:
    """Fine-tune a copy of `model` at rate `lr`; what was measured after each of the eval steps.

    `start` is what `measure` found: step 0 is the same for all rates. Raises BadInput, naming the
    step, where the loss is not finite.
    """
    torch.manual_seed(settings.seed)
    network, tokenizer, encoded = _load(model, material, settings)
    device = next(network.parameters()).device
    Adapter.attach(network.model, settings.lora_rank, settings.seed)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.0)
    batches = _batches([len(ids) for ids in encoded.attack], settings.batch_size, settings.seed)
    found, tokens = {0: start}, 0
    for step in progress(range(1, settings.steps + 1), f"attack at {lr:g}", unit="step"):
        batch = split_batch(encoded.attack, next(batches), encoded.pad_id, device)
        with _autocast(settings, device):
            loss = nll(network, batch)
        if not math.isfinite(loss.item()):
            raise BadInput(f"{model}: the loss is not finite at --lr {lr:g}, step {step}: lower it")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, GRAD_CLIP)
        optimizer.step()
        tokens += batch.totals.tokens
        if step in settings.eval_steps:
            found[step] = _measure(network, tokenizer, encoded, material, settings, tokens)
    return found
