"""Tensors of dictionaries from files: safetensors, or torch's format without running code."""

import pickle
from pathlib import Path

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
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; copy the dictionary again") from error
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"{path} is damaged or holds more than tensors, which may be code and is not run: "
            "refused"
        ) from error
    tensors = found if isinstance(found, dict) else {"": found}
    for tensor in tensors.values():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"{path} holds a {type(tensor).__name__}, not a tensor: refused")
    return tensors
