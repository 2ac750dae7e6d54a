"""What a step needs of device, main memory and disk, before it loads anything.

A step that loads models or matrices names its footprint, which stands beside the code that does so:

    STEP = Step(..., memory="model_diffs.diagnostics.memory:WEIGHTS")
    WEIGHTS = Footprint(needs, ({"dtype": "bf16"}, {"batch_size": 1}))

`needs` computes with configurations, headers of weight files and options.
"""

import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from model_diffs.core import options
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun, is_main_process

GB = 1e9
UNKNOWN = "an unknown amount of memory"
NAMES = {"device": "the device", "host": "main memory", "disk": "disk"}


@dataclass(frozen=True)
class Need:
    """Bytes at the peak, beside what Python and its libraries take."""

    device: float = 0.0
    """Where the models compute."""
    host: float = 0.0
    """Of main memory, beside that."""
    passing: float = 0.0
    """Weights on their way to a device with a memory of its own: main memory for a moment."""
    disk: float = 0.0
    unknown: str = ""
    """A model without a configuration on this disk: nothing can be said."""

    def __add__(self, other: "Need") -> "Need":
        """Both at once; what passes to the device does so one after the other."""
        return replace(
            self,
            device=self.device + other.device,
            host=self.host + other.host,
            passing=max(self.passing, other.passing),
            disk=self.disk + other.disk,
            unknown=self.unknown or other.unknown,
        )

    def on(self, shared: bool) -> "Need":
        """As memory of the device and main memory, which processes of this machine divide; all of
        it main memory where the device has none of its own."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        device, host = (0.0, self.device) if shared else (self.device, self.passing)
        return replace(self, device=device, host=here * (host + self.host), passing=0.0)


@dataclass(frozen=True)
class Footprint:
    """What a step needs."""

    needs: Callable[[Any, Sequence[PlannedRun]], Need]
    """Of its options and the folders that are to be made."""
    smaller: Sequence[Mapping[str, Any]] = ()
    """Options that need less, the mildest first; each is added to those before."""


def footprint(module: ModuleType) -> Footprint | None:
    """What a step's script declares; None where it loads nothing."""
    name, _, own = module.STEP.memory.partition(":")
    return getattr(importlib.import_module(name), own) if name else None


@dataclass(frozen=True)
class Room:
    """Bytes that a step may take."""

    device: float | None
    """None: the device shares main memory (cpu, mps)."""
    host: float
    disk: float

    def lacks(self, need: Need) -> list[str]:
        """What of it is too small: `device`, `host`, `disk`."""
        shared = self.device is None
        wanted, own = need.on(shared), vars(self)
        names = ("host", "disk") if shared else ("device", "host", "disk")
        return [name for name in names if getattr(wanted, name) > own[name]]


# ── what is there ─────────────────────────────────────────────────────────────────────────────────


def own_memory(chosen: Any) -> bool:
    """Whether the device has a memory of its own."""
    if chosen.memory:
        return "," in chosen.memory
    if chosen.device != "auto" and not chosen.device.startswith("cuda"):
        return False
    import torch

    return torch.cuda.is_available()


def _device_memory(chosen: Any) -> float | None:
    """Bytes of the device; None where it shares main memory."""
    if chosen.memory:
        device, comma, _ = chosen.memory.partition(",")
        return float(device) * GB if comma else None
    if not own_memory(chosen):
        return None
    import torch

    number = chosen.device.partition(":")[2] or os.environ.get("LOCAL_RANK", "0")
    return float(torch.cuda.mem_get_info(int(number))[0])


def _nearest(place: Path) -> Path:
    absolute = place.expanduser().absolute()
    return next((one for one in (absolute, *absolute.parents) if one.is_dir()), Path.cwd())


def room(chosen: Any, place: Path) -> Room:
    """What is free now, or what --memory says; of the disk, where results are written."""
    import psutil

    host = float(psutil.virtual_memory().available)
    if chosen.memory:
        host = float(chosen.memory.rpartition(",")[2]) * GB
    return Room(_device_memory(chosen), host, float(shutil.disk_usage(_nearest(place)).free))


def free(chosen: Any) -> float:
    """Bytes where models compute: of the device, or main memory."""
    there = room(chosen, Path())
    return there.host if there.device is None else there.device


# ── what is needed ────────────────────────────────────────────────────────────────────────────────


def estimate(of: Footprint, chosen: Any, todo: Sequence[PlannedRun]) -> Need | None:
    """What a step needs; None where a model is damaged, which the step itself will say."""
    try:
        return of.needs(chosen, todo)
    except BadInput:
        return None


def in_words(need: Need, there: Room) -> str:
    """Such as `14.9 GB of the device, 13.8 GB of main memory, 2.1 GB of disk`."""
    if need.unknown:
        return f"{UNKNOWN}: no config.json of {need.unknown} is on this disk"
    wanted = need.on(there.device is None)
    shown = [
        f"{getattr(wanted, name) / GB:.2f} GB of {of}"
        for name, of in NAMES.items()
        if getattr(wanted, name) >= 0.005 * GB or name == "host"
    ]
    return ", ".join(shown)


def smaller(of: Footprint, chosen: Any, todo: Sequence[PlannedRun], there: Room) -> str:
    """The options that make a step fit, as they are typed; empty where none do."""
    known, tried = {one.name for one in fields(chosen)}, dict[str, Any]()
    for change in of.smaller:
        tried |= {name: value for name, value in change.items() if name in known}
        need = estimate(of, replace(chosen, **tried), todo)
        if need is not None and not there.lacks(need):
            return " ".join(_typed(name, value) for name, value in tried.items())
    return ""


def _typed(name: str, value: Any) -> str:
    words = value if isinstance(value, tuple) else (value,)
    return options.flag(name) + ("" if value is True else f" {' '.join(map(str, words))}")


def problem(of: Footprint, chosen: Any, todo: Sequence[PlannedRun], there: Room) -> str:
    """One line where a step does not fit, with the options that make it fit; else empty."""
    need = estimate(of, chosen, todo)
    if need is None or need.unknown or not (lacks := there.lacks(need)):
        return ""
    free = ", ".join(f"{vars(there)[name] / GB:.2f} GB of {NAMES[name]}" for name in lacks)
    fits = smaller(of, chosen, todo, there)
    larger = "make room on the disk" if lacks == ["disk"] else "use a larger machine"
    advice = f"use {fits}" if fits else larger
    return f"{free} are free: {advice}"


def check(module: ModuleType, chosen: Any, todo: Sequence[PlannedRun]) -> None:
    """Print what a step needs, in one line. Raises BadInput where it cannot fit."""
    of = footprint(module) if is_main_process() else None
    need = estimate(of, chosen, todo) if of else None
    if of is None or need is None:
        return
    there = room(chosen, todo[0].folder)
    print(f"needs about {in_words(need, there)}", flush=True)
    if says := problem(of, chosen, todo, there):
        raise BadInput(f"it needs {in_words(need, there)}, and {says} (or say --memory)")
