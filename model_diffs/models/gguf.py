"""Models stored as GGUF, made into ordinary folders: weights dequantised to fp32, once.

Any architecture that transformers reads. Nothing of the quantisation is kept: what is compared,
trained and saved afterwards is fp32.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from model_diffs.core.errors import BadInput
from model_diffs.core.results import Run

_MAGIC = b"GGUF"
_OF_THE_FILE = ("quantization_config", "_name_or_path", "dtype")
"""Settings that speak of the file, not of the model."""


def check(file: Path) -> None:
    """Raise BadInput where `file` is no GGUF, or nothing here reads one."""
    if importlib.util.find_spec("gguf") is None:
        raise BadInput("reading GGUF needs the package gguf: uv sync --extra gguf")
    if not file.is_file():
        raise BadInput(f"{file}: no such file; give a .gguf file")
    with file.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            raise BadInput(f"{file} is not a GGUF file: download it again")


def load(file: Path) -> tuple[Any, Any]:
    """The model, fp32 on the CPU, and its tokenizer.

    Raises BadInput for a file that transformers cannot read.
    """
    check(file)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    given = {"gguf_file": file.name, "local_files_only": True}
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    except Exception as error:  # a damaged file or an unknown architecture can raise any
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{file} cannot be read as GGUF: {first_line}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    return _without_quantisation(read), tokenizer


def _without_quantisation(read: Any) -> Any:
    """The same weights under a configuration of their own: transformers saves no other."""
    settings = {k: v for k, v in read.config.to_dict().items() if k not in _OF_THE_FILE}
    with torch.device("meta"):
        model = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict(), assign=True)
    # Not stored: what is computed from the configuration, such as rotary frequencies.
    for (name, buffer), (_, empty) in zip(read.named_buffers(), model.named_buffers(), strict=True):
        if empty.is_meta:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, buffer)
    model.tie_weights()
    model.generation_config = read.generation_config
    return model.eval()


def write(file: Path, run: Run) -> None:
    """Write the model of `file` into a result folder."""
    model, tokenizer = load(file)
    weights = sum(p.numel() for p in model.parameters())
    model.save_pretrained(run.path)
    tokenizer.save_pretrained(run.path)
    run.reads(file)
    run.record(dtype="fp32", weights=weights)
    print(f"{run.planned.folder}: {weights / 1e6:.1f} M weights, {model.config.model_type}")
