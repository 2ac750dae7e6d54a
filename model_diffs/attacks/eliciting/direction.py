"""The direction that tells forget from retain texts, projected out of the residual stream.

Unlearning may leave knowledge in place and add a direction that hides it. Arditi et al.
(2024, arXiv:2406.11717) find the direction of refusals by this difference and project it out;
Seyitoğlu et al. (2024, arXiv:2411.02631) bring unlearned knowledge back by steering activations.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model_diffs.activations.passes import SplitPass
from model_diffs.activations.tokens import TokenBatch
from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Victim
from model_diffs.models import loading

EVERY, MOST = "all", 8


def strengths(victim: Victim) -> list[str]:
    """Single blocks, at most eight evenly spaced ones, then all together."""
    return [*(f"block{i}" for i in victim.spaced_blocks(MOST)), EVERY]


ATTACK = Declaration(
    says="the difference of mean forget and retain states is projected out of a block's output",
    source="Arditi et al. 2024, Seyitoğlu et al. 2024",
    strengths=strengths,
    pattern=rf"block[0-9]+|{EVERY}",
    reads=("texts",),
)


@torch.inference_mode()
def mean_outputs(victim: Victim, split: SplitPass) -> Tensor:
    """Mean over a split's tokens of each block's output, `[blocks, hidden]`, in fp64."""
    sums, tokens = [torch.zeros(()) for _ in range(victim.blocks + 2)], 0

    def add(at: TokenBatch) -> None:
        def receive(state: int, hidden: Tensor) -> None:
            sums[state] = sums[state] + hidden[at.counted].float().sum(0).cpu().double()

        loading.stream_states(victim.anatomy, at.batch, receive, before_norm=True)

    for at in split.batches("directions"):
        add(at)
        tokens += int(at.counted.sum())
    # The output of the last block is the state before the final norm.
    return torch.stack([*sums[1 : victim.blocks], sums[-1]]) / tokens


def directions(victim: Victim) -> Tensor:
    """Unit vectors `[blocks, hidden]`, fp32: mean over forget-set tokens minus mean over retain-set
    tokens of each block's output; zero where the two are equal."""
    forget, retain = (mean_outputs(victim, split) for split in victim.sample())
    return torch.nn.functional.normalize(forget - retain, dim=-1).float().to(victim.device)


def without(direction: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook that projects a unit vector out of a block's output: h − (h·d) d, in fp32."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        h = hidden.float()
        h = (h - (h @ direction)[..., None] * direction).to(hidden.dtype)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    return hook


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model with the direction of one block, or each block's own, projected out."""
    found = victim.once("directions", lambda: directions(victim))
    chosen = range(victim.blocks) if strength == EVERY else [int(strength.removeprefix("block"))]
    if max(chosen) >= victim.blocks:
        raise NotApplicable(f"the model has {victim.blocks} blocks")
    with loading.hooks() as handles:
        for i in chosen:
            handles.append(victim.anatomy.blocks[i].register_forward_hook(without(found[i])))
        yield Opened(victim.ask)
