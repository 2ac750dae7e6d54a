"""LoRA, where the `lora` extra is installed: a low-rank change beside frozen weights."""

from dataclasses import dataclass
from typing import Any

import torch

from model_diffs.core.errors import BadInput


@dataclass
class Adapter:
    """A PEFT adapter on a model whose own weights are frozen.

    `wrapped.disable_adapter()` is a context in which the model is the base;
    `wrapped.merge_and_unload()` adds the adapter to the weights.
    """

    wrapped: Any
    size: int
    """Number of weights that are trained."""

    @classmethod
    def attach(cls, model: Any, rank: int, seed: int) -> "Adapter | None":
        """Put an adapter of this rank beside every linear layer of the blocks; None for rank 0.

        The model changes in place. Raises BadInput where PEFT is not installed.
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
        config = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear"
        )
        wrapped = peft.get_peft_model(model, config)
        size = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        return cls(wrapped, size)
