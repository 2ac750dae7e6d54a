"""noise_distil: noise replaces part of every matrix, and a teacher's predictions are learned anew.

Lee et al. 2025, "Distillation robustifies unlearning" (arXiv:2506.06278): what the weights held is
destroyed in part, and what the teacher does not know is not learned again.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from model_diffs.core.errors import BadInput
from model_diffs.models.loading import load_model
from model_diffs.unlearning.data import Pair
from model_diffs.unlearning.interventions import Intervention, intervention
from model_diffs.unlearning.losses import Terms, generator_of, method
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings

if TYPE_CHECKING:
    from model_diffs.unlearning.trainer import Trainer


@method()
def noise_distil(network: Network, pair: Pair, reference: Reference, settings: Settings) -> Terms:
    """KL(teacher ‖ model) per next-token prediction on the texts, nats."""
    batch = pair.text
    with torch.no_grad():
        taught = reference.teacher.predictions(batch).log_softmax(-1)
    own = network.predictions(batch).log_softmax(-1)
    if own.shape != taught.shape:
        raise BadInput("--teacher: another vocabulary than the model's")
    divergence = F.kl_div(own, taught, log_target=True, reduction="sum")
    text = divergence / (batch.step_tokens - batch.step_texts)
    return Terms(torch.zeros_like(text), torch.zeros_like(text), text)


@intervention("noise_distil")
class Noise(Intervention):
    """Before training, every matrix W becomes (1 − a) W + a σ N, σ its root mean square, N standard
    normal, a --noise-share."""

    @torch.no_grad()
    def start(self, trainer: "Trainer", reference: Any) -> None:
        """Load the teacher, add the noise."""
        options: Any = trainer.options
        weight = next(trainer.network.parameters())
        teacher = load_model(
            options.teacher, weight.device, weight.dtype, options.trust_remote_code
        )
        reference.teacher = Network(teacher.requires_grad_(False))
        a = options.noise_share
        for name, W in trainer.network.named_parameters():
            if W.ndim < 2:
                continue
            N = torch.randn(W.shape, generator=generator_of(options.seed, "noise_distil", name))
            W.copy_((1 - a) * W + a * W.square().mean().sqrt() * N.to(W))
