"""Which weights are trained, and by which optimiser."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_cosine_schedule_with_warmup

from model_diffs.core.errors import BadInput
from model_diffs.models import held
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.settings import OptimizerName, Training

FUSED = ("cpu", "cuda", "mps")
"""Devices on which torch updates all weights in one call."""


def attach_adapter(model: Any, rank: int, seed: int) -> Any:
    """Put a LoRA adapter of this rank beside every linear layer of the blocks; None for rank 0.

    The model changes in place. The result is PEFT's wrapper: `disable_adapter()` is a context in
    which the model is the base, `merge_and_unload()` adds the adapter to the weights. Raises
    BadInput where PEFT is not installed.
    """
    if rank == 0:
        return None
    try:
        import peft
    except ModuleNotFoundError as error:
        raise BadInput(
            "--lora-rank needs PEFT: install the extra with uv sync --extra lora"
        ) from error
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return peft.get_peft_model(model, config)


def merge_adapter(adapter: Any, dtype: torch.dtype) -> Any:
    """The model with its adapter added to the weights, each rounded to `dtype` after that.

    A matrix at a time: weights that were held in half precision are widened for the sum alone.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in adapter.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            held.widen(base)
            layer.merge()
            base.to(dtype)
    return adapter.unload()


def choose_trainable(network: Network, trainable: str, layers: Iterable[int]) -> None:
    """Let gradients reach `all` weights, those of the blocks `layers`, or the names that match.

    Anything but `all` and `layers` is a regular expression searched in parameter names. Raises
    BadInput for a pattern that is wrong or matches none.
    """
    network.requires_grad_(trainable == "all")
    if trainable == "layers":
        for layer in layers:
            network.blocks[layer].requires_grad_()
    elif trainable != "all":
        names = dict(network.model.named_parameters())
        try:
            chosen = [p for name, p in names.items() if re.search(trainable, name)]
        except re.error as error:
            raise BadInput(f"--trainable {trainable!r}: not a pattern, {error}") from error
        if not chosen:
            raise BadInput(
                f"--trainable {trainable!r} matches no parameter; names look like "
                f"{next(iter(names))}"
            )
        for parameter in chosen:
            parameter.requires_grad_()


def freeze_unread(network: Network, layers: Sequence[int]) -> None:
    """Take the gradient from what lies above the deepest of `layers`, whose states a loss reads.

    It would stay without one all the same; frozen, it can be held in half precision.
    """
    above = [*network.blocks[max(layers) + 1 :], network.anatomy.head]
    above += [network.anatomy.final_norm] if network.anatomy.final_norm else []
    shared = set(network.anatomy.embedding.parameters())
    for parameter in {p for module in above for p in module.parameters()} - shared:
        parameter.requires_grad_(False)


def adamw(weights: Sequence[Tensor], lr: float) -> torch.optim.AdamW:
    """AdamW without weight decay; all weights in one call where torch has that for the device.

    Weight decay would move every weight, also where the loss asks for nothing, and the change of
    weights is what is studied.
    """
    fused = all(one.device.type in FUSED for one in weights)
    return torch.optim.AdamW(weights, lr, weight_decay=0.0, fused=fused)


def make_optimizers(name: OptimizerName, network: Network, lr: float) -> list[Optimizer]:
    """The optimisers of the weights that are trained.

    Without weight decay (see `adamw`). Muon takes the matrices inside blocks, at a rate scaled to
    match AdamW's; AdamW takes the rest.
    """
    weights: list[nn.Parameter] = [p for p in network.parameters() if p.requires_grad]
    if name == "sgd":
        return [torch.optim.SGD(weights, lr)]
    if name == "adafactor":
        return [torch.optim.Adafactor(weights, lr)]
    inside = set(network.blocks.parameters()) if name == "muon" else set()
    matrices = [p for p in weights if p.ndim == 2 and p in inside]
    rest = [p for p in weights if p.ndim != 2 or p not in inside]
    found: list[Optimizer] = []
    if matrices:
        muon = torch.optim.Muon(matrices, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        found.append(muon)
    if rest:
        found.append(adamw(rest, lr))
    return found


def make_schedule(
    optimizer: Optimizer, steps: int, options: Training, rates: Sequence[float]
) -> LRScheduler:
    """Linear warm-up and cosine decay over `steps`; or `rates`, one per step, where they are given.

    The optimizer was made with the rate of `options`.
    """
    if not rates:
        return get_cosine_schedule_with_warmup(optimizer, options.warmup_steps, steps)
    shares = [rate / options.lr for rate in (*rates, rates[-1])]  # one more is asked for at the end
    return LambdaLR(optimizer, shares.__getitem__)
