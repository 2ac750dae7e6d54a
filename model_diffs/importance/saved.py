"""From means to what is saved: power, normalisation, names, and reading it back.

aggregate → power → normalise

from model_diffs.importance_results import load_results
load_results("outputs/importance/layer_activations_…")["data"]["layer_0_mean_abs"]
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.core.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

CONSOLIDATED, METADATA, SUFFIX = "consolidated_results.npz", "metadata.json", "_gradients.npy"
MODES = {"mean": ("mean",), "mean_abs": ("mean_abs",), "both": ("mean", "mean_abs")}
NORMALISATIONS = {
    "none": ("none",),
    "sum": ("sum",),
    "sum_abs": ("sum_abs",),
    "both": ("sum", "sum_abs"),
}
# Sums of fp32 activations are good to about 1e-6 of Σ|v|: below this share of it, a signed sum is
# uncertain by more than a hundredth.
SMALLEST_SUM = 1e-4


def raise_to(values: "np.ndarray", power: float | None) -> "np.ndarray":
    """sign(v)·|v|^power, which is v^power where v ≥ 0. BadInput where that overflows."""
    import numpy as np

    if power is None:
        return values
    with np.errstate(over="ignore"):
        raised = np.sign(values) * np.abs(values) ** power
    if not np.isfinite(raised).all():
        raise BadInput(f"--power {power}: the result is too large for a number; use a smaller one")
    return raised


def normalise(values: "np.ndarray", how: str, what: str = "the values") -> "np.ndarray":
    """Scale so that Σ|v| (`sum_abs`) or Σv (`sum`) is the number of dimensions; `none` leaves v.

    Raises BadInput, naming `what`, where the sum is zero, and for `sum` where |Σv| is below
    SMALLEST_SUM of Σ|v|: positive and negative values cancel, and dividing would blow up rounding.
    """
    import numpy as np

    if how == "none":
        return values
    absolute = float(np.abs(values).sum())
    total = absolute if how == "sum_abs" else float(values.sum())
    if absolute == 0:
        raise BadInput(f"{what} are all zero: nothing to normalise (--normalize_gradients none)")
    if abs(total) < SMALLEST_SUM * absolute:
        raise BadInput(
            f"{what} add up to {total:.3g}, only {abs(total) / absolute:.1g} of Σ|v|: too close to "
            "0 to divide by; use --normalize_gradients sum_abs or none"
        )
    return values * (len(values) / total)


def variants(
    means: "np.ndarray", layer: int, mode: str, power: float | None, normalisation: str
) -> "tuple[dict[str, np.ndarray], list[str]]":
    """Everything that is saved of a layer by its key, `layer_{i}_{mode}[_norm_…]`, in fp32.

    means `[2, size]`: mean and mean_abs. Keys name the normalisation only where both are computed.
    What cannot be normalised is left out, and said why in the list: the rest took as long to get.
    """
    import numpy as np

    found, refused = {}, []
    for one in MODES[mode]:
        raised = raise_to(means[0 if one == "mean" else 1], power)
        for how in NORMALISATIONS[normalisation]:
            key = f"layer_{layer}_{one}" + (f"_norm_{how}" if normalisation == "both" else "")
            what = f"layer {layer}, {one}: the values"
            try:
                found[key] = normalise(raised, how, what).astype(np.float32)
            except BadInput as error:
                refused.append(str(error))
    return found, refused


def statistics(values: "np.ndarray") -> dict[str, float]:
    """Of one array: mean, std, max, sum of absolute values."""
    import numpy as np

    exact = values.astype(np.float64)
    return {
        "mean": float(exact.mean()),
        "std": float(exact.std()),
        "max": float(exact.max()),
        "sum_abs": float(np.abs(exact).sum()),
    }


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def write_consolidated(
    path: Path, data: "Mapping[str, np.ndarray]", metadata: Mapping[str, Any]
) -> None:
    """All arrays and the metadata, as a JSON string, in one file; in place only when complete."""
    import numpy as np

    text = np.array(json.dumps(metadata, allow_nan=False))
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with part.open("wb") as handle:
            arrays: dict[str, Any] = {**data, "metadata": text}
            np.savez_compressed(handle, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_arrays(folder: Path, data: "Mapping[str, np.ndarray]") -> None:
    """One .npy file per array."""
    import numpy as np

    for key, values in data.items():
        np.save(folder / f"{key}{SUFFIX}", values, allow_pickle=False)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def load_results(path: "str | os.PathLike[str]") -> dict[str, Any]:
    """`{"data": {key: array}, "metadata": {…}}` from a consolidated .npz or a result folder.

    Keys are `layer_{i}_{mode}[_norm_…]`. Nothing is unpickled. Raises BadInput where there is no
    result or it cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _from_folder(place)
    if not place.is_file():
        raise BadInput(f"{place}: no such file or folder; give a result folder or its .npz")
    return _from_npz(place)


def _from_npz(path: Path) -> dict[str, Any]:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as stored:
            data = {key: stored[key] for key in stored.files if key != "metadata"}
            metadata = json.loads(str(stored["metadata"]))
    except (ValueError, KeyError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is not a consolidated result: run the analysis again") from error
    return {"data": data, "metadata": metadata}


def _arrays(folder: Path) -> Iterator[tuple[str, "np.ndarray"]]:
    import numpy as np

    for file in folder.glob(f"layer_*{SUFFIX}"):
        yield file.name.removesuffix(SUFFIX), np.load(file, allow_pickle=False)


def _from_folder(folder: Path) -> dict[str, Any]:
    try:
        data = dict(_arrays(folder))
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{folder} has no {METADATA}: it is not a result folder") from error
    except (ValueError, OSError) as error:
        raise BadInput(f"{folder} cannot be read: run the analysis again") from error
    if not data:
        raise BadInput(f"{folder} has no layer_*{SUFFIX}: it is not a result folder")
    order = {key: n for n, key in enumerate(metadata.get("layer_statistics", {}))}
    return {
        "data": {k: data[k] for k in sorted(data, key=lambda k: (order.get(k, len(order)), k))},
        "metadata": metadata,
    }
