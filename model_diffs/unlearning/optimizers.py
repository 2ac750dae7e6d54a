"""Which weights are trained, and by which optimiser."""

import re
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from model_diffs.core.errors import BadInput
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.settings import OptimizerName


def choose_trainable(network: Network, trainable: str, layers: Iterable[int]) -> None:
    """Let gradients reach `all` weights, those of the blocks `layers`, or the names that match.

    Anything but `all` and `layers` is a regular expression searched in parameter names. Raises
    BadInput for a pattern that is wrong or matches none.
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
            raise BadInput(f"--trainable {trainable!r}: not a pattern, {error}") from error
    if not chosen:
        raise BadInput(
            f"--trainable {trainable!r} matches no parameter; names look like {next(iter(names))}"
        )
    for name, parameter in names.items():
        parameter.requires_grad_(name in chosen)


def make_optimizers(name: OptimizerName, network: Network, lr: float) -> list[Optimizer]:
    """The optimisers of the weights that are trained.

    Without weight decay: it would move every weight, also where the loss asks for nothing, and the
    change of weights is what is studied. Muon takes the matrices inside blocks, at a rate scaled to
    match AdamW's; AdamW takes the rest.
    """
    weights: list[nn.Parameter] = [p for p in network.parameters() if p.requires_grad]
    if name == "sgd":
        return [torch.optim.SGD(weights, lr)]
    if name == "adafactor":
        return [torch.optim.Adafactor(weights, lr)]
    inside = {id(p) for p in network.blocks.parameters()} if name == "muon" else set()
    matrices = [p for p in weights if p.ndim == 2 and id(p) in inside]
    chosen = {id(p) for p in matrices}
    rest = [p for p in weights if id(p) not in chosen]
    found: list[Optimizer] = []
    if matrices:
        muon = torch.optim.Muon(matrices, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        found.append(muon)
    if rest:
        found.append(torch.optim.AdamW(rest, lr, weight_decay=0.0))
    return found
