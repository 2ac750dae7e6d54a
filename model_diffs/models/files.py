"""Where the files of a model are: a local folder, or its snapshot from the hub.

Standard library only at import; the hub's client is loaded when a name of the hub is given.
"""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from model_diffs.core import naming
from model_diffs.core.errors import BadInput

CONFIG = "config.json"
_HUB_NAME = re.compile(r"^(?P<repo>[\w][\w.-]*(?:/[\w][\w.-]*)?)(?:@(?P<revision>[\w][\w./-]*))?$")
_TOKENIZER_AND_CONFIG = ["*.json", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
# Other copies of the same weights, and files in folders, are not what transformers would load.
_NOT_WANTED = ["*/*", "consolidated*", "*.onnx*", "training_args*"]


@functools.cache
def resolve(model: str) -> Path:
    """Folder with the files of `model`: the folder itself, or its snapshot from the hub.

    Raises BadInput for a folder that is not there, a name the hub does not have or does not give,
    and a hub that cannot be reached.
    """
    if naming.is_local(model):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise BadInput(f"{model}: no such folder; give a model folder or org/name")
        return folder
    name = _HUB_NAME.match(model)
    if name is None or ".." in model:
        raise BadInput(f"{model!r} is neither a folder nor org/name[@revision]")
    return _snapshot(model, name["repo"], name["revision"])


def _snapshot(model: str, repo: str, revision: str | None) -> Path:
    """Download what is missing of a hub model; safetensors, or .bin where there are none."""
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        found = snapshot_download(
            repo,
            revision=revision,
            token=os.environ.get("HF_TOKEN") or False,
            allow_patterns=patterns,
            ignore_patterns=_NOT_WANTED,
        )
        return Path(found)

    try:
        folder = fetch([*_TOKENIZER_AND_CONFIG, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            folder = fetch(["pytorch_model*.bin", "pytorch_model.bin.index.json"])
    except Exception as error:  # whatever it is, it is raised again, in one line where known
        raise hub_problem(model, error) from error
    return folder


def hub_problem(model: str, error: Exception) -> Exception:
    """The one line for a failed download; the error itself where it is none of the hub's."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return BadInput(f"{model} is gated: accept its terms on the hub and set HF_TOKEN in .env")
    if isinstance(error, errors.RevisionNotFoundError):
        return BadInput(f"{model}: the hub has no such revision")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return BadInput(f"{model}: no such folder, and no such (or a private) model on the hub")
    if isinstance(error, OSError | errors.LocalEntryNotFoundError) or _is_network(error):
        return BadInput(
            f"{model}: no such folder, and the hub cannot be reached; "
            "connect, download it first, or give a folder"
        )
    return error


def _is_network(error: Exception) -> bool:
    return any(kind.__module__.split(".")[0] in ("httpx", "httpcore") for kind in type(error).mro())


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of the language model in `folder`. BadInput where it is missing or not JSON."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{folder}: no {CONFIG}; this is not a model folder") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid JSON: copy the model again") from error
    if "text_config" in config:
        inherited = {k: config[k] for k in ("tie_word_embeddings",) if k in config}
        return {**inherited, **config["text_config"]}
    return config


def weight_files(folder: Path) -> tuple[Path | None, list[Path]]:
    """The index, where there is one, and the weight files, as transformers would choose them."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / single).is_file():
            return None, [folder / single]
        if (folder / index).is_file():
            return folder / index, [folder / name for name in _shards(folder / index)]
        shards = sorted(folder.glob(single.replace(".", "-*-of-*.")))
        if shards:
            return None, shards
    if any(folder.glob("adapter_model.*")):
        raise BadInput(f"{folder} holds an adapter only: merge it into its base model first")
    raise BadInput(f"{folder}: no weights; looked for *.safetensors and pytorch_model.bin")


def weight_map(index: Path) -> dict[str, str]:
    """Shard of each tensor, by name, from a weight index. BadInput where it is not one."""
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{index} is not a weight index: copy the model again") from error


def _shards(index: Path) -> list[str]:
    names = sorted(set(weight_map(index).values()))
    for name in names:
        if Path(name).name != name:
            raise BadInput(f"{index} names {name!r}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise BadInput(f"{index.parent}: the shard {name} is missing; copy the model again")
    return names
