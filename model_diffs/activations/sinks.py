"""Attention sinks at the first position: found in the base, left out of both models' statistics.

Many models put a state of enormous norm at the first position of a text, whatever its token is
(Xiao et al. 2024; Sun et al. 2024). A mean over tokens, a second moment or a relative change then
speaks of that one position. What is left out is decided on the base, so that a changed model is
measured on the same tokens, and is found without a pass over all texts.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model_diffs.activations.saved import FOLDER
from model_diffs.core import naming, results
from model_diffs.core.results import PlannedRun
from model_diffs.data.texts import Split
from model_diffs.models import files

if TYPE_CHECKING:
    import torch

SINK = 10.0
"""A first position with a norm this many times larger than the others' is an attention sink."""
SAMPLED, POSITIONS = 8, 32
"""Texts of each split that are looked at, and how many of their first positions."""
T = TypeVar("T")
_found: dict[Path, tuple[PlannedRun, float]] = {}
"""What this process measured, by the place where `keep` writes it."""
_said: set[str] = set()


def without_sinks(options: T, base: str, splits: Sequence[Split], loaded: Any = None) -> T:
    """The options with a number of first positions to leave out: the given one, or with `auto` 1
    where the base has a sink there and 0 elsewhere.

    `options`: a step's, with `Texts` and `Run`; `loaded`: the base, where it is in memory already.
    The ratio is read from the activation cache where an earlier pass kept it, so that a step which
    finds its statistics saved needs no torch.
    """
    given: Any = options
    if given.skip_first is not None:
        return options
    decisive = {
        "sink_of": files.fingerprint(base),
        "texts": [split.sha256 for split in splits],
        "max_length": given.max_length,
        "keep_bos": given.keep_bos,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]
    place = Path(getattr(given, "outroot", ""), FOLDER, f"sink-{key}")
    planned = PlannedRun(place, f"{naming.model_label(base)} first position", decisive, base)
    kept = results.read_record(place) if results.state(planned).status == "complete" else None
    ratio = (kept or {}).get("first_position_ratio")
    if place in _found:
        ratio = _found[place][1]
    elif not isinstance(ratio, float):
        ratio = _largest_ratio(given, base, splits, loaded)
        _found[place] = planned, ratio
    if ratio > SINK and results.is_main_process() and base not in _said:
        _said.add(base)
        print(
            f"{naming.model_label(base)}: the norm of the first position is {ratio:.0f} times the "
            "others' (an attention sink): left out of all statistics; --skip-first 0 keeps it",
            file=sys.stderr,
        )
    return dataclasses.replace(given, skip_first=int(ratio > SINK))


def keep(outroot: str) -> None:
    """Write what this process measured into the activation cache of `outroot`."""
    for planned, ratio in _found.values():
        if planned.folder.parent != Path(outroot, FOLDER):
            continue
        if results.state(planned).status != "complete":
            with results.open_run(planned) as run:
                run.record(first_position_ratio=ratio)


def ratio_to_others(norms: "torch.Tensor", counted: "torch.Tensor") -> float:
    """Mean norm at the first counted position of each text over that at its others; 0 without such.

    norms: `[texts, positions]`; counted: the same shape, bool.
    """
    norms, counted = norms.cpu().double(), counted.cpu()
    first = counted & (counted.cumsum(1) == 1)
    others = counted & ~first
    if not others.any():
        return 0.0
    return float(norms[first].mean() / norms[others].mean())


def _largest_ratio(options: Any, base: str, splits: Sequence[Split], loaded: Any) -> float:
    """The largest ratio over the base's states, on the first texts of the splits.

    A state does not depend on later positions, so that beginnings of texts are enough.
    """
    import torch

    from model_diffs.activations.skeleton import states_of
    from model_diffs.activations.tokens import TokenBatch, padded_batches, tokenise
    from model_diffs.data.texts import length_batches
    from model_diffs.models import devices, loading
    from model_diffs.models.anatomy import locate

    tokenizer = loading.load_tokenizer(base, options.trust_remote_code)
    texts = [text for split in splits for text in split.texts[:SAMPLED]]
    most = min(options.max_length, POSITIONS)
    tokens = tokenise(tokenizer, texts, most, options.keep_bos, 0)
    if loaded is None:
        read = states_of(options, base, getattr(options, "device_map", None))
    else:
        anatomy = locate(loaded)

        def read(at: TokenBatch, receive: Callable[[int, torch.Tensor], None]) -> None:
            loading.stream_states(anatomy, at.batch, receive, before_norm=True)

    device, ratios = devices.pick_device(options.device), [0.0]
    batches = length_batches(tokens.lengths, options.batch_size)
    with torch.inference_mode():
        for at in padded_batches(tokens, batches, tokenizer.pad_token_id, device):

            def receive(_: int, hidden: torch.Tensor, counted: torch.Tensor = at.counted) -> None:
                norms = hidden.float().norm(dim=-1)
                ratios.append(ratio_to_others(norms, counted.to(norms.device)))

            read(at, receive)
    return max(ratios)
