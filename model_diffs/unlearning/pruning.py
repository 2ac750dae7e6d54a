"""prune: neurons that matter most to forget and least to retain texts are removed, step by step.

A neuron is one unit of an MLP's inner layer. What removing it would do to a loss is estimated to
first order (Molchanov et al. 2017, arXiv:1611.06440). Training on retain texts goes on meanwhile,
so that what else a neuron did is taken over by others. Removed neurons get no gradient; what the
optimiser remembers of earlier ones would move them, so they are set to zero after every step.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.unlearning.data import Pair
from model_diffs.unlearning.interventions import Intervention, intervention
from model_diffs.unlearning.losses import Terms, method, nll
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings

if TYPE_CHECKING:
    from model_diffs.unlearning.trainer import Trainer

BATCHES = 16
"""Of each split that importance is measured on."""


@method()
def prune(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """NLL(retain)."""
    retain = nll(network, pair.retain)
    return Terms(torch.zeros_like(retain), retain)


def parts(network: Network) -> list[tuple[nn.Linear, list[nn.Linear]]]:
    """Of each MLP: the linear layer that reads its neurons, and those that write them.

    Raises BadInput for an MLP that is made otherwise.
    """
    found = []
    for mlp in network.mlps:
        out = mlp.matrices.get("mlp_out")
        into = [one for name, one in mlp.matrices.items() if name != "mlp_out"]
        plain = all(isinstance(one, nn.Linear) for one in (out, *into))
        if not plain or any(one.out_features != out.in_features for one in into):
            raise BadInput(
                f"--method prune: the MLP of block {mlp.layer} is not one of plain linear layers"
            )
        found.append((out, into))
    return found


def remove(out: nn.Linear, into: list[nn.Linear], neurons: list[int]) -> None:
    """Set the weights of neurons to zero on both sides."""
    out.weight[:, neurons] = 0
    for one in into:
        one.weight[neurons] = 0
        if one.bias is not None:
            one.bias[neurons] = 0


def importance(trainer: "Trainer", split: str) -> Tensor:
    """Mean over batches of |Σ_o W_on ∂NLL/∂W_on|, `[blocks · neurons]`, over its mean: how much
    the loss changes when neuron n, column n of the MLP's output matrix W, is removed."""
    layers = [out for out, _ in parts(trainer.network)]
    weights = [one.weight for one in layers]
    total = [torch.zeros_like(W[0]) for W in weights]
    count, size = len(trainer.texts(split)), trainer.options.batch_size
    for start in range(0, min(count, BATCHES * size), size):
        batch = trainer.batch(split, range(start, min(start + size, count)))
        gradients = torch.autograd.grad(nll(trainer.network, batch), weights)
        for sums, W, G in zip(total, weights, gradients, strict=True):
            sums += (W * G).sum(0).abs().detach()
    found = torch.cat(total)
    return found / found.mean()


@intervention("prune")
class Pruning(Intervention):
    """Neurons are removed over the first half of the steps, the most specific ones first.

    With a target, only while accuracy is above it.
    """

    def start(self, trainer: "Trainer", reference: Any) -> None:
        """Rank the neurons of all blocks by importance to forget minus importance to retain."""
        self.parts = parts(trainer.network)
        specific = importance(trainer, "forget") - importance(trainer, "retain")
        self.order = specific.argsort(descending=True).tolist()
        options: Any = trainer.options
        self.most = round(options.pruned * len(self.order))
        self.each = -(-self.most * 2 // max(1, len(trainer.steps)))

    @torch.no_grad()
    def after_step(self, trainer: "Trainer", number: int) -> None:
        """Remove the next ones, and those removed before again."""
        if trainer.search.standing not in ("within", "below"):
            self.position = min(self.position + self.each, self.most)
        removed, first = self.order[: self.position], 0
        for out, into in self.parts:
            last = first + out.in_features
            remove(out, into, [place - first for place in removed if first <= place < last])
            first = last

    def finish(self, trainer: "Trainer") -> None:
        """Say how many are gone."""
        trainer.say(f"{self.position} of {len(self.order)} neurons removed")
