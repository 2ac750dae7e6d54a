"""Generation: one prompt or several, greedy or sampled, the same text for the same seed.

Light at import: `infer.py` takes its sampling options from here.
"""

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.folders import whole_file
from model_diffs.core.options import Compute, fraction, option, positive, seedable


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling."""

    max_new_tokens: int = option(100, "maximum number of generated tokens", check=positive)
    temperature: float = option(0.7, "divides the logits", check=positive)
    top_p: float = option(0.95, "share of probability to sample from", check=fraction)
    greedy: bool = option(False, "always the likeliest token")
    seed: int = option(42, "same seed, same text", check=seedable)


class Speaker(NamedTuple):
    """A loaded model with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any


def load(options: Compute, model: str, device_map: str | None = None) -> Speaker:
    """A model with its tokenizer. Raises BadInput, naming it, for a weight with NaN or Inf.

    Logits that are not finite would otherwise become an empty text, or any token.
    """
    from model_diffs.models import loading
    from model_diffs.models.checkpoints import check_finite

    loaded = loading.load_for(options, model, device_map)
    for name, weight in loaded.named_parameters():
        if not weight.is_meta:  # on disk, where device_map put it
            check_finite(weight.detach(), f"{name} of {model}")
    tokenizer = loading.load_tokenizer(model, options.trust_remote_code)
    return Speaker(naming.model_label(model), loaded, tokenizer)


def generate(speaker: Speaker, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """The continuation of each prompt, without special tokens.

    Prompts are padded on the left to one length. Greedy text does not depend on the other prompts;
    sampled text does, through the order of random numbers. Raises BadInput for a prompt that is
    empty or longer than the model takes, and for logits with NaN or Inf.
    """
    import torch
    from transformers import GenerationConfig

    from model_diffs.models import loading

    model, tokenizer = speaker.model, speaker.tokenizer
    encoded = tokenizer(list(prompts))["input_ids"]
    if not all(encoded):
        raise BadInput("the prompt is empty: give some text")
    device = next(model.parameters()).device
    batch = loading.pad_batch(encoded, tokenizer.pad_token_id, device, side="left")
    length, new = batch.input_ids.shape[1], sampling.max_new_tokens
    limit = tokenizer.model_max_length
    if length >= limit:
        raise BadInput(f"the prompt has {length} tokens, {speaker.name} takes {limit}: shorten it")
    chosen: dict[str, Any] = {"do_sample": not sampling.greedy}
    if not sampling.greedy:
        chosen |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    end = getattr(model.generation_config, "eos_token_id", None)
    # All settings are explicit: a model's own generation_config would differ by model.
    configuration = GenerationConfig(
        max_new_tokens=min(new, limit - length),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id if end is None else end,
        **chosen,
    )

    def checked(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        # Sampling sets what is left out to −∞.
        if bool((logits.isnan() | logits.isposinf()).any()):
            raise BadInput(f"{speaker.name}: logits with NaN or Inf; try --dtype fp32")
        return logits

    torch.manual_seed(sampling.seed)  # of every device
    with torch.inference_mode():
        made = model.generate(
            **batch._asdict(), generation_config=configuration, logits_processor=[checked]
        )
    return tokenizer.batch_decode(made[:, length:], skip_special_tokens=True)


def side_by_side(names: Sequence[str], outputs: Sequence[str], width: int) -> str:
    """Two outputs as two columns, `width` characters together."""
    column = max(20, (width - 3) // 2)

    def wrapped(text: str) -> list[str]:
        lines = text.strip().splitlines() or [""]
        return [part for line in lines for part in textwrap.wrap(line, column) or [""]]

    left, right = (
        [*wrapped(name), "─" * column, *wrapped(output)]
        for name, output in zip(names, outputs, strict=True)
    )
    rows = zip_longest(left, right, fillvalue="")
    return "\n".join(f"{one:<{column}} │ {other}".rstrip() for one, other in rows)


# ── sweeps ────────────────────────────────────────────────────────────────────────────────────────


def model_folders(folder: Path) -> list[Path]:
    """The models in a folder, by name; `<name>/unlearned_model` counts as one.

    Hidden folders, which an unfinished run is writing, are left out. Raises BadInput where there
    is no model.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder of models; make some, or give --models-dir")
    made = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if not made:
        raise BadInput(f"{folder}: no model in it; make some with unlearn.py, or give --models-dir")
    return [inner if (inner := path / "unlearned_model").is_dir() else path for path in made]


def write_sweep(
    folder: Path, prompt: str, rows: Sequence[Mapping[str, str]], sampling: Sampling
) -> Path:
    """Write the table of one prompt, named by its SHA-256, and a JSON file with the sampling.

    Raises BadInput where the folder cannot be written.
    """
    import pandas as pd

    path = folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.csv"
    facts = {field.name: getattr(sampling, field.name) for field in fields(Sampling)}
    table = pd.DataFrame(rows, columns=["prompt", "model", "model_path", "output"])
    contents = {
        path.with_suffix(".json"): json.dumps({"prompt": prompt, **facts}, indent=2),
        path: table.assign(prompt=prompt).to_csv(index=False, lineterminator="\n"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, text in contents.items():
            with whole_file(target) as partial:
                partial.write_text(text, encoding="utf-8")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}): choose --outdir") from error
    return path
