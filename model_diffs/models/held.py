"""Weights kept in the dtype that they are stored in, while the model computes in a wider one.

A weight that is not trained need not be widened as a whole: a linear layer widens its matrix for
the length of one product, an embedding the rows that it looks up. Widening is exact, so every
number is that of a model loaded in the wider dtype; only its memory is that of the narrow one.
Products can be differentiated any number of times; nothing widened is kept for that.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x ↦ x Wᵀ + b, with W in a narrower dtype than x and without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(W)
        return F.linear(x, W.to(x.dtype), b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (W,), g = ctx.saved_tensors, gradients[0]
        of_b = g.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return _Product.apply(g, W.T, None), None, of_b


class HeldLinear(nn.Linear):
    """A linear layer whose weight is narrower than its input."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == self.weight.dtype or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        found: Tensor = _Product.apply(input, self.weight, self.bias)
        return found


class HeldEmbedding(nn.Embedding):
    """An embedding whose rows are widened to fp32 when they are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HeldLinear,
    nn.Embedding: HeldEmbedding,
}


def hold(model: nn.Module) -> None:
    """Make a model with half-precision weights compute in fp32, in place.

    Matrices of linear layers and embeddings that get no gradient stay as they are; everything else
    (what is trained, norms, biases, other layers' weights) becomes fp32.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    for parameter, modules in owners.items():
        known = all(type(one) in _CLASSES and one.weight is parameter for one in modules)
        if known and not parameter.requires_grad and parameter.dtype.itemsize < 4:
            for one in modules:
                one.__class__ = _CLASSES[type(one)]
            # A view of the mapped file would keep all of it in memory, what is trained too.
            parameter.data = parameter.data.clone()
        else:
            parameter.data = parameter.data.float()


def holds(model: nn.Module) -> bool:
    """Whether some weight of a model is held."""
    return any(type(one) in _CLASSES.values() for one in model.modules())


def widen(module: nn.Module) -> None:
    """Make every weight inside a module fp32, and its held layers plain ones again, in place."""
    plain = {own: known for known, own in _CLASSES.items()}
    for one in module.modules():
        if type(one) in plain:
            one.__class__ = plain[type(one)]
    module.float()
