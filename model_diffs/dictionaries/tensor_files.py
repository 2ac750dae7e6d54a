"""Tensors of dictionaries from files: safetensors, NumPy's or torch's format; no code is run."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model_diffs.core.errors import BadInput


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU; a tensor that was saved alone has the name "".

    Raises BadInput where the file is missing or damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; copy the dictionary again") from error
    except (
        *(SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile),
        *(OSError, RuntimeError, ValueError, TypeError),
    ) as error:
        raise BadInput(
            f"{path} is damaged or holds more than tensors, which may be code and is not run: "
            "refused"
        ) from error
    tensors = found if isinstance(found, dict) else {"": found}
    for tensor in tensors.values():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"{path} holds a {type(tensor).__name__}, not a tensor: refused")
    return tensors
