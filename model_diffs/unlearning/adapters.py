"""LoRA, where the `lora` extra is installed: a low-rank change beside frozen weights."""

from typing import Any

import torch

from model_diffs.core.errors import BadInput


def attach(model: Any, rank: int, seed: int) -> Any:
    """Put an adapter of this rank beside every linear layer of the blocks; None for rank 0.

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
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear"
    )
    return peft.get_peft_model(model, config)
