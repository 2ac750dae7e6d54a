"""A device without fp64, as Apple's is, that computes on the CPU: `--device single`.

Its tensors hold CPU tensors and say that they lie elsewhere. To make one of fp64 is an error, and
so is to compute with tensors of two devices.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "single"
WIDE = (torch.float64, torch.complex128)
# Operations that take tensors of two devices.
CROSSING = ("aten::copy_", "aten::_copy_from", "aten::_to_copy", "aten::index", "aten::_index_put")
# Elsewhere made of others in ways that a wrapped tensor cannot follow.
FACTORIES = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "full",
             "ones", "zeros", "empty.memory_format", "empty_strided")  # fmt: skip


class SingleTensor(Tensor):
    """A tensor on the device; `raw` is what it holds."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "SingleTensor":
        assert not isinstance(raw, SingleTensor)
        if raw.dtype in WIDE:
            raise TypeError(f"{raw.dtype} on a device that has none")
        found = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        found.raw = raw
        return found

    def tolist(self) -> Any:
        return self.raw.tolist()

    def __getitem__(self, key: Any) -> Tensor:
        def indices(one: Any) -> Any:
            return ORIGINAL_TENSOR(one, dtype=torch.long) if isinstance(one, list) else one

        keys = tuple(map(indices, key)) if isinstance(key, tuple) else indices(key)
        return super().__getitem__(keys)

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))


def _raw(tensor: Tensor) -> Tensor:
    return tensor.raw if isinstance(tensor, SingleTensor) else tensor


def _check(name: str, tensors: list[Tensor], place: Any, dtype: Any) -> None:
    here = [one for one in tensors if isinstance(one, SingleTensor)]
    elsewhere = [one for one in tensors if not isinstance(one, SingleTensor) and one.dim()]
    if here and elsewhere and not name.startswith(CROSSING):
        raise RuntimeError(f"{name}: tensors of two devices, {[x.shape for x in elsewhere]}")
    if dtype in WIDE and (here or place == NAME):
        raise TypeError(f"{name}: {dtype} on a device that has none")


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute on the CPU; results lie on the device unless they are asked for elsewhere."""
    name = op.name()
    if name == "aten::_has_compatible_shallow_copy_type":
        return False
    leaves = tree_leaves((args, kwargs))
    tensors = [one for one in leaves if isinstance(one, Tensor)]
    place = next((one.type for one in leaves if isinstance(one, torch.device)), None)
    dtype = next((one for one in leaves if isinstance(one, torch.dtype)), None)
    _check(name, tensors, place, dtype)
    args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs))
    raw_args, raw_kwargs = tree_map_only(Tensor, _raw, (args, kwargs))
    if name == "aten::_copy_from":
        raw_args[1].copy_(raw_args[0])
        return args[1]
    found = op(*raw_args, **raw_kwargs)
    if name == "aten::copy_":
        return args[0]
    crossing = (
        place is not None and tensors and isinstance(tensors[0], SingleTensor) == (place != NAME)
    )
    if crossing and isinstance(found, Tensor):
        found = found.clone()  # the two devices share no memory
    if place not in (None, NAME):
        return found
    same = {id(one.raw): one for one in tensors if isinstance(one, SingleTensor)}
    return tree_map_only(
        Tensor, lambda one: same[id(one)] if id(one) in same else SingleTensor(one), found
    )


def _tensor(data: Any, **more: Any) -> Tensor:
    place = more.get("device")
    if place is None or torch.device(place).type != NAME:
        return ORIGINAL_TENSOR(data, **more)
    wants = more.pop("requires_grad", False)
    return ORIGINAL_TENSOR(data, **{**more, "device": "cpu"}).to(NAME).requires_grad_(wants)


ORIGINAL_TENSOR = torch.tensor
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
"""Whether this torch takes a device that is written in Python; 2.9 does not."""
_libraries: list[torch.library.Library] = []


def install() -> None:
    """Register the device, once in a process."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    fallback, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(_run, "PrivateUse1")
    for name in FACTORIES:
        base, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, base), overload or "default")

        def make(op: Any) -> Callable[..., Any]:
            return lambda *args, **kwargs: _run(
                op, *args, **{"device": torch.device(NAME), **kwargs}
            )

        own.impl(name, make(op), "PrivateUse1")
    _device_constructors()  # remembers the original, which contexts of a device ask for
    torch.tensor = _tensor  # type: ignore[assignment]
    _libraries.extend([fallback, own])
