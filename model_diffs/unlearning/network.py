"""A causal language model as the losses see it: states after blocks, log-probabilities of texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model_diffs.core.errors import BadInput
from model_diffs.models.anatomy import locate
from model_diffs.models.loading import hooks


class Perturbation(NamedTuple):
    """Something added to the outputs of some blocks."""

    layers: tuple[int, ...]
    delta: Tensor
    """`[blocks, texts, positions, hidden]`, zero at padding."""


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Half precision becomes fp32; fp32 and fp64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Reached(Exception):
    """The deepest block that is asked for has run."""


class Network(nn.Module):
    """The passes that losses make. A module, so that DDP and FSDP see every use of the weights."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        """`model` is a causal language model of transformers; it is held, not copied."""
        super().__init__()
        self.model = model
        self.training = model.training
        self.anatomy = locate(model)

    @property
    def blocks(self) -> Any:
        """The decoder blocks in order."""
        return self.anatomy.blocks

    @property
    def mlps(self) -> Any:
        """The feed-forward parts of the blocks, in order."""
        return self.anatomy.mlps

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
    def checkpointed(self, enabled: bool) -> Iterator[None]:
        """Recompute blocks in the backward pass while this is open.

        transformers' own does so in training mode only, with dropout: a loss against a reference
        needs the same function on both sides.
        """
        blocks = self.blocks if enabled else ()
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    @contextmanager
    def _perturbed(self, perturbation: Perturbation | None) -> Iterator[list[Any]]:
        """A list for hook handles, removed at the end; before them the perturbation acts."""

        def add(delta: Tensor, module: nn.Module, args: Any, output: Any) -> Any:
            hidden = _hidden(output)
            changed = hidden + delta.to(hidden.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        with hooks() as handles:
            for layer, delta in zip(*perturbation, strict=True) if perturbation else ():
                handles.append(self.blocks[layer].register_forward_hook(partial(add, delta)))
            yield handles

    def _trunk(self, batch: Any) -> Tensor:
        return self.anatomy.trunk(
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

        def keep(layer: int, module: nn.Module, args: Any, output: Any) -> None:
            found[layer] = _hidden(output)
            if layer == max(layers):
                raise _Reached

        with self._perturbed(perturbation) as handles, suppress(_Reached):
            for layer in layers:
                handles.append(self.blocks[layer].register_forward_hook(partial(keep, layer)))
            self._trunk(batch)
        return found

    def log_probs(self, batch: Any, perturbation: Perturbation | None = None) -> Tensor:
        """Log-probability of each text given its first token, `[texts]`, at least fp32."""
        logits, mask = self.predictions(batch, perturbation), _predicting(batch)
        per_token = -F.cross_entropy(logits, batch.input_ids[:, 1:][mask], reduction="none")
        return per_token.new_zeros(mask.shape).masked_scatter(mask, per_token).sum(1)

    def predictions(self, batch: Any, perturbation: Perturbation | None = None) -> Tensor:
        """Logits at the positions that predict a real token, `[predictions, vocabulary]`, at least
        fp32, text by text. Only these positions meet the head."""
        with self._perturbed(perturbation):
            hidden = self._trunk(batch)
        return at_least_fp32(self.logits(hidden[:, :-1][_predicting(batch)]))

    def logits(self, hidden: Tensor) -> Tensor:
        """The head on final hidden states, with the soft cap of those models that have one."""
        logits = self.anatomy.head(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


def _predicting(batch: Any) -> Tensor:
    """`[texts, positions − 1]`: whether a position and the next one hold tokens of the text."""
    return (batch.attention_mask[:, 1:] * batch.attention_mask[:, :-1]).bool()


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def check_head(network: Network, batch: Any) -> None:
    """Raise BadInput where the model's own logits are not its head on its last hidden states."""
    mask = batch.attention_mask.bool()
    ours = network.logits(network._trunk(batch)[mask]).float()
    theirs = network.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits[mask]
    if not (ours - theirs.float()).abs().max() <= 1e-2 * theirs.float().abs().max():
        raise BadInput(
            f"{type(network.model).__name__} does something to its logits after the head that "
            "is not known here; its log-probabilities would be wrong"
        )
