"""Weights divided over the processes of `accelerate launch --use_fsdp`, for large models.

torch's `fully_shard` is called here and not through `Accelerator.prepare`, which knows it on
accelerators alone: so what runs on several GPUs is what the tests run on two CPU processes.
"""

import os
from typing import Any

import torch
from torch import nn

from model_diffs.core.errors import BadInput
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.settings import Options


def take_over(options: Options) -> Any:
    """accelerate's FSDP settings where the launcher asked for several processes, else None.

    From then on accelerate sees plain processes. Raises BadInput for options that do not work with
    sharded weights, for FSDP 1, which flattens weights, and for its checkpointing of activations.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    for flag, given in (
        ("--lora-rank", options.lora_rank),
        ("--checkpoint-every", options.checkpoint_every),
        # torch's own has no rule for the norm of a matrix that lies in pieces
        ("--optimizer adafactor", options.optimizer == "adafactor"),
    ):
        if given:
            raise BadInput(f"{flag} and sharded weights do not go together: leave one of them")
    from accelerate.utils import FullyShardedDataParallelPlugin

    # The other processes would load empty weights, to be filled by Accelerator.prepare.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if os.environ.get("FSDP_VERSION") != "2":
        raise BadInput("sharding needs FSDP 2: give accelerate launch --fsdp_version 2")
    plugin = FullyShardedDataParallelPlugin()
    if plugin.activation_checkpointing:
        raise BadInput("fsdp_activation_checkpointing: give --gradient-checkpointing instead")
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return plugin


def shard(network: Network, device: torch.device, plugin: Any) -> None:
    """Cut the network's weights over all processes, in place; before its optimisers are made.

    Every block and every other module with weights is gathered on its own, when it runs: losses run
    parts of the model, and the adversary's search ends a backward pass between two forward passes.
    Tied weights belong to several modules and stay gathered while a loss is computed.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
    }
    for block in network.blocks:
        fully_shard(block, **settings)
    inside = set(network.blocks.modules())
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for module in network.modules():
        for weight in module.parameters(recurse=False):
            holders.setdefault(weight, []).append(module)
    tied = {one for modules in holders.values() if len(modules) > 1 for one in modules}
    alone = {one for modules in holders.values() for one in modules} - inside - tied
    for module in [one for one in network.modules() if one in alone]:
        fully_shard(module, **settings)
    fully_shard(network, **settings)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The state dict of a sharded model with whole tensors on the CPU; to be called by all
    processes, empty on all but the first."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=whole)
