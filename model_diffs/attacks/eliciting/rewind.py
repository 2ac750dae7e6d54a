"""Parts of the change put back: single blocks, or leading singular directions of ΔW.

It asks for the smallest part of ΔW = W − W_base whose reversal restores half of the gap to the
base: a patch sits in one block, or in few directions.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Victim, squared
from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint

ALL, MOST = "all", 8
DIRECTIONS = (1, 2, 4, 8, 16)


def strengths(victim: Victim) -> list[str]:
    """k directions of every matrix of all blocks, single blocks (at most eight evenly spaced ones),
    and everything, which is the base: it says how wide the gap is."""
    k = [f"k{one}" for one in DIRECTIONS]
    blocks = [f"block{i}" for i in victim.spaced_blocks(MOST)]
    return [*k, *(f"{block}-{one}" for block in blocks for one in k), *blocks, ALL]


ATTACK = Declaration(
    says="ΔW of one block, or k leading singular directions of ΔW of every matrix, is put back",
    source="",
    strengths=strengths,
    pattern=rf"k[1-9][0-9]*|block[0-9]+(-k[1-9][0-9]*)?|{ALL}",
    reads=("base",),
    smallest=True,
)
Directions = dict[str, tuple[Tensor, Tensor, Tensor]]


def decompose(victim: Victim, base: Checkpoint, count: int) -> Directions:
    """U, σ, Vᵀ of ΔW of each matrix of the blocks, by its name: the `count` leading ones."""
    read, found = victim.reading(base), Directions()
    for matrix, W in victim.inside_blocks():
        U, sigma, Vt = torch.linalg.svd(W - read(matrix), full_matrices=False)
        found[matrix.name] = U[:, :count].clone(), sigma[:count].clone(), Vt[:count].clone()
    return found


Part = tuple[Iterator[tuple[str, Tensor]], float]
"""Tensors with a part of ΔW put back, by name, and that part's ‖·‖²."""


def whole(victim: Victim, base: Checkpoint, blocks: range) -> Part:
    """Everything of these blocks, biases and norms too."""
    inside = {id(one) for i in blocks for one in victim.anatomy.blocks[i].parameters()}
    names = {name for name, one in victim.parameters.items() if id(one) in inside}
    both = [(name, W, B) for name, W, B in victim.tensors(base) if name in names]
    return ((name, B) for name, _, B in both), sum(squared(W - B) for _, W, B in both)


def directions(victim: Victim, base: Checkpoint, blocks: range, k: int) -> Part:
    """The k leading singular directions of every matrix of these blocks."""
    count = max(k, *DIRECTIONS)
    found = victim.once(f"directions {count}", lambda: decompose(victim, base, count))

    def without(matrix: Matrix, W: Tensor) -> Tensor:
        U, sigma, Vt = found[matrix.name]
        return W - (U[:, :k] * sigma[:k]) @ Vt[:k] if matrix.layer in blocks else W

    inside = (one.name for one, _ in victim.inside_blocks() if one.layer in blocks)
    return victim.changed(without), sum(squared(found[name][1][:k]) for name in inside)


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model with a part of ΔW put back."""
    base = victim.base
    assert base is not None
    total = victim.distance(base)
    if total == 0:
        raise NotApplicable(f"its weights are those of {base.model}")
    if strength == ALL:
        with victim.replaced((name, B) for name, _, B in victim.tensors(base)):
            yield Opened(victim.ask, 1.0)
        return
    parts = re.fullmatch(r"(?:block([0-9]+))?-?(?:k([0-9]+))?", strength)
    number, k = parts.groups() if parts else (None, None)
    blocks = range(int(number), int(number) + 1) if number else range(victim.blocks)
    if blocks[-1] >= victim.blocks:
        raise NotApplicable(f"the model has {victim.blocks} blocks")
    tensors, undone = directions(victim, base, blocks, int(k)) if k else whole(victim, base, blocks)
    with victim.replaced(tensors):
        yield Opened(victim.ask, min(1.0, undone / total))  # σ² of all may exceed it by rounding
