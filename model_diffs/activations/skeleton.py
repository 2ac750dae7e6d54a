"""A model without weights: each part has them while it is used, read from the model's files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from model_diffs.activations.tokens import TokenBatch
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute
from model_diffs.models import devices, loading
from model_diffs.models.anatomy import Anatomy, locate
from model_diffs.models.checkpoints import Checkpoint


@dataclass
class Flow:
    """One batch on its way through a model."""

    hidden: Tensor
    """`[B, positions, hidden]`, the input of the next block."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """What each block is called with beside its states: masks, positions."""
    normed: Tensor | None = None
    """After the final norm."""

    def advance(self, index: int, block: nn.Module) -> None:
        """Through the block of this number."""
        args, kwargs = self.calls[index]
        if args:
            output = block(self.hidden, *args[1:], **kwargs)
        else:
            output = block(**{**kwargs, "hidden_states": self.hidden})
        self.hidden = output[0] if isinstance(output, tuple) else output


@dataclass
class Skeleton:
    """A model whose weights are read part by part."""

    name: str
    model: nn.Module
    anatomy: Anatomy
    checkpoint: Checkpoint
    stored: Mapping[str, str]
    """Stored tensor of each parameter of the trunk."""
    device: torch.device
    dtype: torch.dtype
    names: dict[int, str] = field(init=False)
    as_tuple: bool = field(init=False)
    """Whether blocks return their states in a tuple."""

    def __post_init__(self) -> None:
        named = self.model.named_modules()
        self.names = {id(module): name for name, module in named}
        self.as_tuple = self._returns_tuples()

    @classmethod
    def open(cls, name: str, device: torch.device, dtype: torch.dtype, remote: bool) -> "Skeleton":
        """A model of a folder or the hub, without its weights.

        Raises BadInput where a parameter of its trunk is not stored as a tensor of its own, as with
        experts that are joined when they are loaded.
        """
        checkpoint = Checkpoint.open(name)
        with loading.bad_input(f"{name} cannot be loaded"), _without_weights():
            config = AutoConfig.from_pretrained(
                checkpoint.folder, trust_remote_code=remote, local_files_only=True
            )
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=remote)
        for module in model.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(device)
        anatomy = locate(model.eval().requires_grad_(False))
        inside = {id(parameter) for parameter in anatomy.trunk.parameters()}
        stored = {
            key: _stored_name(key, parameter, checkpoint)
            for key, parameter in model.named_parameters()
            if id(parameter) in inside
        }
        return cls(name, model, anatomy, checkpoint, stored, device, dtype)

    @contextmanager
    def filled(self, *modules: nn.Module) -> Iterator[None]:
        """These modules have their weights meanwhile."""
        empty = []
        for module in modules:
            root = self.names[id(module)]
            for name, parameter in list(module.named_parameters()):
                tensor = self.checkpoint.tensor(self.stored[f"{root}.{name}"])
                value = tensor.to(self.device, self.dtype)
                owner, _, leaf = name.rpartition(".")
                holder = module.get_submodule(owner)
                empty.append((holder, leaf, parameter))
                holder._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        try:
            yield
        finally:
            for holder, leaf, parameter in empty:
                holder._parameters[leaf] = parameter
            self.checkpoint.let_go()

    def outside(self) -> list[nn.Module]:
        """The modules with weights around the blocks, without the embedding."""
        anatomy = self.anatomy
        inner = {id(one) for block in anatomy.blocks for one in block.modules()}
        return [
            module
            for module in anatomy.trunk.modules()
            if id(module) not in inner
            and module is not anatomy.embedding
            and any(True for _ in module.parameters(recurse=False))
        ]

    def enter(self, batches: Sequence[TokenBatch]) -> list[Flow]:
        """Each batch as the first block is called with it."""
        with self.filled(self.anatomy.embedding, *self.outside()):
            return [self._entered(at) for at in batches]

    def _entered(self, at: TokenBatch) -> Flow:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[Tensor] = []

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            first[:] = first or [hidden]
            # Without the states: those of all blocks would be kept.
            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            calls.append(((None, *args[1:]) if args else (), rest))
            return (hidden,) if self.as_tuple else hidden

        with self._replaced(stand_in):
            self.anatomy.trunk(**at.batch._asdict(), use_cache=False)
        return Flow(first[0], calls)

    def leave(self, flows: Sequence[Flow], batches: Sequence[TokenBatch]) -> None:
        """Through what follows the last block."""
        with self.filled(*self.outside()):
            for flow, at in zip(flows, batches, strict=True):

                def stand_in(*_: Any, flow: Flow = flow, **__: Any) -> Any:
                    return (flow.hidden,) if self.as_tuple else flow.hidden

                embedding = self.anatomy.embedding.weight
                shape = (*at.batch.input_ids.shape, embedding.shape[1])
                nothing = torch.zeros(shape, dtype=self.dtype, device=self.device)
                with self._replaced(stand_in):
                    flow.normed = self.anatomy.trunk(
                        inputs_embeds=nothing,
                        attention_mask=at.batch.attention_mask,
                        use_cache=False,
                    )[0]

    def states(self, at: TokenBatch, receive: Callable[[int, Tensor], None]) -> None:
        """Hand over each hidden state of a batch, as `loading.stream_states` before the norm."""
        (flow,) = self.enter([at])
        for index, block in enumerate(self.anatomy.blocks):
            receive(index, flow.hidden)
            with self.filled(block):
                flow.advance(index, block)
        self.leave([flow], [at])
        assert flow.normed is not None
        receive(len(self.anatomy.blocks), flow.normed)
        receive(len(self.anatomy.blocks) + 1, flow.hidden)

    @contextmanager
    def _replaced(self, stand_in: Any) -> Iterator[None]:
        """The blocks do something else meanwhile."""
        blocks = self.anatomy.blocks
        for block in blocks:
            block.forward = stand_in
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def _returns_tuples(self) -> bool:
        """Looked up on a text of one token."""
        anatomy, found = self.anatomy, list[bool]()

        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.append(isinstance(output, tuple))
            raise loading.Reached

        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        first = anatomy.blocks[0]
        with loading.hooks() as handles, self.filled(anatomy.embedding, first, *self.outside()):
            handles.append(first.register_forward_hook(look))
            with suppress(loading.Reached):
                anatomy.trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return found[0]


@contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters of models that are built meanwhile take no memory; buffers are made."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


Read = Callable[[TokenBatch, Callable[[int, Tensor], None]], None]
"""Hands over each state of a batch, the one before the final norm last."""


def states_of(options: Compute, name: str, device_map: str | None = None) -> Read:
    """A model to be read: loaded where it fits into memory, else block by block if that can be."""
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    size = Checkpoint.open(name).weights * dtype.itemsize
    if size > devices.free_memory(device) and not device_map:
        with suppress(BadInput):
            return Skeleton.open(name, device, dtype, options.trust_remote_code).states
    anatomy = locate(loading.load_for(options, name, device_map))

    def read(at: TokenBatch, receive: Callable[[int, Tensor], None]) -> None:
        loading.stream_states(anatomy, at.batch, receive, before_norm=True)

    return read


def _stored_name(name: str, parameter: Tensor, checkpoint: Checkpoint) -> str:
    """The stored tensor of a parameter; a prefix that only one of them has does not matter."""
    entries = checkpoint.entries
    ends = [one for one in entries if name.endswith(f".{one}") or one.endswith(f".{name}")]
    found = [name] if name in entries else ends
    if len(found) != 1 or entries[found[0]].shape != parameter.shape:
        raise BadInput(
            f"{checkpoint.model}: {name} is not stored as a tensor of its own, so that its blocks "
            "cannot be read one by one; use --side-by-side no"
        )
    return found[0]
