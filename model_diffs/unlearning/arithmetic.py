"""task_arithmetic: what fine-tuning on the forget set adds to the base is subtracted from it.

Ilharco et al. 2023, "Editing models with task arithmetic" (arXiv:2212.04089): forgetting by
negation of a task vector, W = W_base − s (W_tuned − W_base).
"""

from typing import TYPE_CHECKING, Any

import torch

from model_diffs.unlearning.data import Pair
from model_diffs.unlearning.interventions import Intervention, intervention
from model_diffs.unlearning.losses import Terms, method, nll
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings

if TYPE_CHECKING:
    from model_diffs.unlearning.trainer import Trainer


@method()
def task_arithmetic(
    network: Network, pair: Pair, reference: Reference, settings: Settings
) -> Terms:
    """NLL(forget), minimised: the task vector's training."""
    forget = nll(network, pair.forget)
    return Terms(forget, torch.zeros_like(forget))


@intervention("task_arithmetic")
class Negation(Intervention):
    """After training, every weight is moved as far to the other side, times --scale."""

    grows_with_steps = False

    def start(self, trainer: "Trainer", reference: Any) -> None:
        """Keep the base's weights."""
        named = trainer.network.named_parameters()
        self.base = {name: one.detach().clone() for name, one in named}

    @torch.no_grad()
    def finish(self, trainer: "Trainer") -> None:
        """W_base − s (W − W_base), s as given or as the target asks for."""
        weights = dict(trainer.network.named_parameters())
        added = {name: one.detach() - self.base[name] for name, one in weights.items()}

        def apply(scale: float) -> None:
            for name, one in weights.items():
                one.copy_(self.base[name] - scale * added[name])

        options: Any = trainer.options
        scale = trainer.search.strength(trainer, apply, options.scale)
        trainer.say(f"task vector subtracted {scale:.4g} times")
