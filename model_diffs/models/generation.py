"""Text from models: one prompt or several, greedy or sampled, the same again for the same seed."""

import gc
import hashlib
import json
import os
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from model_diffs.core import folders, naming
from model_diffs.core.errors import BadInput
from model_diffs.models import loading

COLUMNS = ("prompt", "model", "model_path", "output")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 100
    temperature: float = 0.7
    top_p: float = 0.95
    greedy: bool = False
    """The likeliest token, always; temperature and top_p then play no part."""
    seed: int = 42


class Speaker(NamedTuple):
    """A loaded model that can be asked."""

    name: str
    model: Any
    tokenizer: Any


class Written(NamedTuple):
    """One output of a sweep."""

    prompt: str
    model: str
    model_path: str
    output: str


def _positions(model: Any) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _configuration(speaker: Speaker, sampling: Sampling, longest: int) -> GenerationConfig:
    """Everything is said here: what a model's own generation_config adds would differ by model."""
    model, tokenizer = speaker.model, speaker.tokenizer
    new, limit = sampling.max_new_tokens, _positions(model)
    if limit is not None:
        if longest >= limit:
            raise BadInput(
                f"the prompt has {longest} tokens, {speaker.name} takes {limit}: shorten it"
            )
        new = min(new, limit - longest)
    chosen = (
        {"do_sample": False}
        if sampling.greedy
        else {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    )
    end = getattr(model.generation_config, "eos_token_id", None)
    return GenerationConfig(
        max_new_tokens=new,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id if end is None else end,
        **chosen,
    )


@torch.inference_mode()
def generate(speaker: Speaker, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """What a model says after each prompt, special tokens left out.

    Prompts of unequal length are padded on the left, so that each is followed by its own next
    token. Greedy text does not depend on the other prompts; sampled text does, through the order of
    random numbers. Raises BadInput for a prompt that is empty or longer than the model takes.
    """
    encoded = speaker.tokenizer(list(prompts))["input_ids"]
    if not all(encoded):
        raise BadInput("the prompt is empty: give some text")
    device = next(speaker.model.parameters()).device
    batch = loading.pad_batch(encoded, speaker.tokenizer.pad_token_id, device, side="left")
    length = batch.input_ids.shape[1]
    configuration = _configuration(speaker, sampling, length)
    torch.manual_seed(sampling.seed)  # of every device
    made = speaker.model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        generation_config=configuration,
    )
    return speaker.tokenizer.batch_decode(made[:, length:], skip_special_tokens=True)


def load(options: Any, model: str) -> Speaker:
    """A model with its tokenizer, as a script's compute options say."""
    loaded = loading.load_for(options, model, getattr(options, "device_map", None))
    tokenizer = loading.load_tokenizer(model, options.trust_remote_code)
    return Speaker(naming.model_label(model), loaded, tokenizer)


def free() -> None:
    """Give back what a model that nobody refers to any more took on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ── side by side ──────────────────────────────────────────────────────────────────────────────────


def _wrapped(text: str, width: int) -> list[str]:
    lines = []
    for line in text.strip().splitlines() or [""]:
        lines += textwrap.wrap(line, width, drop_whitespace=True) or [""]
    return lines


def side_by_side(names: Sequence[str], outputs: Sequence[str], width: int) -> str:
    """Two outputs as two columns, `width` characters together."""
    column = max(20, (width - 3) // 2)
    cells = [
        [*_wrapped(name, column), "─" * column, *_wrapped(output, column)]
        for name, output in zip(names, outputs, strict=True)
    ]
    height = max(map(len, cells))
    left, right = ([*lines, *[""] * (height - len(lines))] for lines in cells)
    return "\n".join(
        f"{one:<{column}} │ {other}".rstrip() for one, other in zip(left, right, strict=True)
    )


# ── sweeps ────────────────────────────────────────────────────────────────────────────────────────


def model_folders(folder: Path) -> list[Path]:
    """The models in a folder, by name; `<name>/unlearned_model` counts as one.

    Raises BadInput where there is none. Hidden folders are what an unfinished run is writing.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder of models; make some, or give --models-dir")
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            inner = path / "unlearned_model"
            found.append(inner if inner.is_dir() else path)
    if not found:
        raise BadInput(f"{folder}: no model in it; make some with unlearn.py, or give --models-dir")
    return found


def sweep_file(folder: Path, prompt: str) -> Path:
    """Where the outputs for a prompt go: the same prompt always gives the same name."""
    return folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.csv"


def write_sweep(folder: Path, prompt: str, written: Sequence[Written], sampling: Sampling) -> Path:
    """Write the table, and beside it a JSON file with how it was sampled; each whole or not at all.

    Raises BadInput where the folder cannot be written.
    """
    import pandas as pd

    path = sweep_file(folder, prompt)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(written, columns=[*COLUMNS]).to_csv(index=False, lineterminator="\n")
        for target, text in (
            (
                path.with_suffix(".json"),
                json.dumps({"prompt": prompt, **asdict(sampling)}, indent=2),
            ),
            (path, table),
        ):
            partial = target.with_name(f".{target.name}.{os.getpid()}{folders.PARTIAL}")
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(target)
            finally:
                with suppress(FileNotFoundError):
                    partial.unlink()
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}): choose --outdir") from error
    return path
