"""Which weights are trained, by which optimiser, at which rate."""

import re
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from model_diffs.core.errors import BadInput
from model_diffs.unlearning.network import Network

OPTIMIZERS = ("adamw", "sgd", "adafactor", "muon")


def choose_trainable(network: Network, trainable: str, layers: Iterable[int]) -> int:
    """Let gradients reach `all` weights, those of the blocks `layers`, or the names that match.

    Anything but `all` and `layers` is a regular expression searched in parameter names. Returns the
    number of weights that are trained. Raises BadInput for a pattern that is wrong or matches none.
    """
    names = dict(network.model.named_parameters())
    if trainable == "all":
        chosen = set(names)
    elif trainable == "layers":
        inside = {id(p) for layer in layers for p in network.blocks[layer].parameters()}
        chosen = {name for name, parameter in names.items() if id(parameter) in inside}
    else:
        try:
            chosen = {name for name in names if re.search(trainable, name)}
        except re.error as error:
            raise BadInput(
                f"--trainable {trainable!r} is no regular expression: {error}"
            ) from error
    if not chosen:
        raise BadInput(
            f"--trainable {trainable!r} matches no parameter; names look like {next(iter(names))}"
        )
    for name, parameter in names.items():
        parameter.requires_grad_(name in chosen)
    return sum(names[name].numel() for name in chosen)


def make_optimizers(name: str, network: Network, lr: float) -> list[Optimizer]:
    """The optimisers of the weights that are trained.

    Without weight decay: it would move every weight, also where the loss asks for nothing, and the
    change of weights is what is studied. Muon takes the matrices inside blocks, at a rate scaled to
    match AdamW's; AdamW takes the rest.
    """
    weights: list[nn.Parameter] = [p for p in network.parameters() if p.requires_grad]
    if name == "adamw":
        return [torch.optim.AdamW(weights, lr, weight_decay=0.0)]
    if name == "sgd":
        return [torch.optim.SGD(weights, lr)]
    if name == "adafactor":
        return [torch.optim.Adafactor(weights, lr)]
    if name != "muon":
        raise BadInput(f"no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")
    inside = {id(p) for p in network.blocks.parameters()}
    matrices = [p for p in weights if p.ndim == 2 and id(p) in inside]
    chosen = {id(p) for p in matrices}
    rest = [p for p in weights if id(p) not in chosen]
    found: list[Optimizer] = []
    if matrices:
        found.append(
            torch.optim.Muon(matrices, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        found.append(torch.optim.AdamW(rest, lr, weight_decay=0.0))
    return found


def make_schedules(optimizers: list[Optimizer], warmup: int, steps: int) -> list[LRScheduler]:
    """Linear warm-up over `warmup` steps, then half a cosine down to zero at `steps`."""
    return [get_cosine_schedule_with_warmup(one, warmup, steps) for one in optimizers]
