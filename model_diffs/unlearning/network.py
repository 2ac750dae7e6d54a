"""A causal language model as the losses see it: states after blocks, log-probabilities of texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.models.anatomy import locate
from model_diffs.models.loading import hooks


class Perturbation(NamedTuple):
    """Something added to the output of one block."""

    layer: int
    delta: Tensor
    """`[texts, positions, hidden]`, zero at padding."""


class LogProbs(NamedTuple):
    """Log-probability of each text, given its first token."""

    sums: Tensor
    """`[texts]`, natural logarithm, at least fp32."""
    counts: Tensor
    """`[texts]`: next-token predictions that were summed."""

    def reduced(self, reduction: str) -> Tensor:
        """Per token (`mean`) or of the whole text (`sum`), `[texts]`."""
        return self.sums / self.counts if reduction == "mean" else self.sums


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Half precision becomes fp32; fp32 and fp64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Network(nn.Module):
    """The passes that losses make. A module, so that DDP and FSDP see every use of the weights."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        """`model` is a causal language model of transformers; it is held, not copied."""
        super().__init__()
        self.model = model
        self.training = model.training
        anatomy = locate(model)
        places = (
            (module, name)
            for module in anatomy.trunk.modules()
            for name, child in module.named_children()
            if child is anatomy.blocks
        )
        # A tuple keeps the parts from being registered a second time under other names.
        self._parts: Any = (anatomy, next(places, None))

    @property
    def blocks(self) -> Any:
        """The decoder blocks in order."""
        return self._parts[0].blocks

    @property
    def positions(self) -> int | None:
        """Longest text in tokens, where the configuration names a limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def forward(self, computation: Callable[..., Any], *arguments: Any) -> Any:
        """Call `computation(self, *arguments)`.

        Wrappers of this module (DDP, FSDP, autocast) act around one forward, so a loss that makes
        several passes, or ends one early, has to lie inside it.
        """
        return computation(self, *arguments)

    def gather_again(self) -> None:
        """Call where a backward pass ended inside `forward` and another pass follows.

        A backward pass releases sharded weights. Blocks gather theirs when they run; tied weights
        are gathered when `forward` begins.
        """
        getattr(self, "unshard", tuple)()  # `unshard` exists once weights are sharded

    @contextmanager
    def _cut_after(self, layer: int) -> Iterator[None]:
        """For the block's duration the model has no blocks above `layer`.

        An exception thrown from a hook would end the pass as well, but not under gradient
        checkpointing, which replays blocks.
        """
        (holder, name), blocks = self._parts[1], self.blocks
        setattr(holder, name, blocks[: layer + 1])
        try:
            yield
        finally:
            setattr(holder, name, blocks)

    def _trunk_output(self, batch: Any) -> Tensor:
        return self._parts[0].trunk(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )[0]

    def states(
        self, batch: Any, layers: Sequence[int], perturbation: Perturbation | None = None
    ) -> dict[int, Tensor]:
        """Outputs of the blocks `layers`, each `[texts, positions, hidden]`.

        0-based by block: hidden state ℓ + 1 of transformers, but before the final norm. Blocks
        above the deepest of `layers` and the head are not run.
        """
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[layer] = _hidden(output)

            return hook

        with hooks() as handles, self._cut_after(max(layers)):
            handles.extend(self._perturb(perturbation))
            for layer in layers:
                handles.append(self.blocks[layer].register_forward_hook(keep(layer)))
            self._trunk_output(batch)
        return found

    def log_probs(self, batch: Any, perturbation: Perturbation | None = None) -> LogProbs:
        """Log-probability of each text; only positions that predict a real token meet the head."""
        with hooks() as handles:
            handles.extend(self._perturb(perturbation))
            hidden = self._trunk_output(batch)
        mask = (batch.attention_mask[:, 1:] * batch.attention_mask[:, :-1]).bool()
        logits = at_least_fp32(self.logits(hidden[:, :-1][mask]))
        per_token = -F.cross_entropy(logits, batch.input_ids[:, 1:][mask], reduction="none")
        placed = per_token.new_zeros(mask.shape).masked_scatter(mask, per_token)
        return LogProbs(placed.sum(1), mask.sum(1).clamp(min=1))

    def logits(self, hidden: Tensor) -> Tensor:
        """The head on final hidden states, with the soft cap of those models that have one."""
        logits = self._parts[0].head(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def _perturb(self, perturbation: Perturbation | None) -> list[Any]:
        if perturbation is None:
            return []

        # Adding needs no saved tensor, so a replay of the block by gradient checkpointing, which
        # comes after this hook is gone, finds what it expects.
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = _hidden(output)
            changed = hidden + perturbation.delta.to(hidden.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return [self.blocks[perturbation.layer].register_forward_hook(hook)]


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def check_head(network: Network, batch: Any) -> None:
    """Raise BadInput where the model's own logits are not its head on its last hidden states."""
    ours = network.logits(network._trunk_output(batch))
    theirs = network.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits
    mask = batch.attention_mask.bool()
    error = (ours[mask].float() - theirs[mask].float()).abs().max()
    if not error <= 1e-2 * theirs[mask].float().abs().max():
        raise BadInput(
            f"{type(network.model).__name__} does something to its logits after the head that "
            "is not known here; its log-probabilities would be wrong"
        )
