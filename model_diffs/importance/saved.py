"""From means to what is saved: power, normalisation, places and names, and reading it back.

from model_diffs.importance.saved import load_results
load_results("outputs/importance/layer_activations_…")["data"]["layer_0_mean_abs"]
"""

import json
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from model_diffs.core import folders, naming
from model_diffs.core.errors import BadInput
from model_diffs.importance.options import Measurement, Options

FOLDER, CONSOLIDATED = "importance", "consolidated_results.npz"
# Sums of fp32 activations are accurate to about 1e-6 of Σ|v|: below this share of it, a signed sum
# is uncertain by more than a hundredth.
SMALLEST_SUM = 1e-4


# ── values ────────────────────────────────────────────────────────────────────────────────────────


def raise_to(values: np.ndarray, power: float | None) -> np.ndarray:
    """sign(v)·|v|^power. Raises BadInput where that overflows."""
    if power is None:
        return values
    with np.errstate(over="ignore"):
        raised = np.sign(values) * np.abs(values) ** power
    if not np.isfinite(raised).all():
        raise BadInput(f"--power {power}: the result is too large for a number; use a smaller one")
    return raised


def normalise(values: np.ndarray, how: str, what: str = "the values") -> np.ndarray:
    """Scale so that Σ|v| (`sum_abs`) or Σv (`sum`) is the number of dimensions; `none` leaves v.

    Raises BadInput, naming `what`, where the sum is zero, and for `sum` where |Σv| is below
    SMALLEST_SUM of Σ|v|: positive and negative values cancel, and dividing would amplify rounding.
    """
    if how == "none":
        return values
    absolute = float(abs(values).sum())
    total = absolute if how == "sum_abs" else float(values.sum())
    if absolute == 0:
        raise BadInput(f"{what} are all zero: nothing to normalise (--normalize-gradients none)")
    if abs(total) < SMALLEST_SUM * absolute:
        raise BadInput(
            f"{what} add up to {total:.3g}, only {abs(total) / absolute:.1g} of Σ|v|: too close to "
            "0 to divide by; use --normalize-gradients sum_abs or none"
        )
    return values * (len(values) / total)


def asked(options: Measurement) -> list[tuple[str, str, str]]:
    """Mode, normalisation and ending `_norm_…` of each array that is saved of a layer.

    The ending is empty where one normalisation is asked for. Keys are `layer_{i}_{mode}{ending}`.
    """
    mode, normalisation = options.aggregation_mode, options.normalize_gradients
    both = normalisation == "both"
    return [
        (one, how, f"_norm_{how}" if both else "")
        for one in (("mean", "mean_abs") if mode == "both" else (mode,))
        for how in (("sum", "sum_abs") if both else (normalisation,))
    ]


def variants(
    means: Mapping[int, np.ndarray], options: Measurement, power: float | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Every array that is saved, in fp32, by its key, and what could not be normalised.

    means `[2, size]` of each layer: mean and mean_abs. The second part says, one line each, which
    arrays are left out and why; the others are kept, since all took the same pass.
    """
    found, refused = {}, []
    for layer, both in means.items():
        for mode, how, ending in asked(options):
            raised = raise_to(both[0 if mode == "mean" else 1], power)
            try:
                values = normalise(raised, how, f"layer {layer}, {mode}: the values")
            except BadInput as error:
                refused.append(str(error))
            else:
                found[f"layer_{layer}_{mode}{ending}"] = values.astype("float32")
    return found, refused


# ── places ────────────────────────────────────────────────────────────────────────────────────────


def layers_label(layers: Sequence[int]) -> str:
    """Layers as a folder name has them: `0-23`, `0,5,10`, `0-3,8`."""
    # Consecutive layers have the same distance to their place.
    groups = groupby(enumerate(layers), lambda one: one[1] - one[0])
    runs = [[layer for _, layer in group] for _, group in groups]
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def result_folder(
    options: Options, prefix: str, layers: Sequence[int], power: float | None
) -> Path:
    """A new folder, named after what was asked for and the time."""
    label = naming.model_label(options.model)
    name = f"{prefix}_model_{label}_num_samples_{options.max_samples}"
    name += f"_batch_size_{options.batch_size}_layers_{layers_label(layers)}"
    name += f"{'' if power is None else f'_power_{power}'}_{time.strftime('%Y%m%d_%H%M%S')}"
    folder, copy = Path(options.outroot) / FOLDER / name, 2
    while folder.exists():  # another run of this second
        folder, copy = folder.with_name(f"{name}_{copy}"), copy + 1
    return folder


def consolidated_path(given: str, power: float | None = None) -> Path:
    """Where --save-consolidated goes; `power` is part of the name where there are several."""
    path = Path(given).expanduser()
    name = path.name.removesuffix(".npz") + ("" if power is None else f"_power_{power}")
    return path.with_name(f"{name}.npz")


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def check_places(options: Options) -> None:
    """Raise BadInput, before anything is computed, where results could not be written."""
    if options.save_outputs:
        place = Path(options.outroot).absolute() / FOLDER
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not _is_writable(there):
            raise BadInput(f"--outroot: {there} is no folder that can be written: choose another")
    if options.save_consolidated:
        path = Path(options.save_consolidated).expanduser()
        if path.is_dir():
            raise BadInput(f"--save-consolidated {options.save_consolidated} is a folder")
        if not _is_writable(path.parent):
            raise BadInput(f"--save-consolidated: {path.parent} is no folder that can be written")
        # Permissions do not tell of file systems that take no file, or of names that are too long.
        probe = consolidated_path(options.save_consolidated)
        probe = probe.with_name(folders.unfinished_name(probe.name))
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            why = f"cannot be written ({error.strerror}): choose another"
            raise BadInput(f"--save-consolidated {options.save_consolidated} {why}") from error


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def write_consolidated(
    path: Path, data: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """All arrays, and the metadata as a JSON string, in one file."""
    text = np.array(json.dumps(metadata, allow_nan=False))
    with folders.whole_file(path) as partial, partial.open("wb") as handle:
        arrays: dict[str, Any] = {**data, "metadata": text}
        np.savez_compressed(handle, **arrays)


def load_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`{"data": {key: array}, "metadata": {…}}` from a result folder or a consolidated .npz.

    Keys are `layer_{i}_{mode}[_norm_…]`. Nothing is unpickled. Raises BadInput where there is no
    result or it cannot be read.
    """
    place = Path(path).expanduser()
    file = place / CONSOLIDATED if place.is_dir() else place
    if not file.is_file():
        raise BadInput(f"{file}: no such file; give a result folder or its .npz")
    try:
        with np.load(file, allow_pickle=False) as stored:
            data = {key: stored[key] for key in stored.files if key != "metadata"}
            metadata = json.loads(str(stored["metadata"]))
    except (ValueError, KeyError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{file} is not a consolidated result: run the analysis again") from error
    return {"data": data, "metadata": metadata}
