"""Where the files of a model are: a local folder, or its snapshot from the hub.

Standard library only at import; the hub's client is loaded when a hub name is given.
"""

import errno
import functools
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_diffs.core import content, naming
from model_diffs.core.errors import BadInput
from model_diffs.models import configuration

CONFIG = "config.json"
_HUB_NAME = re.compile(r"^(?P<repo>[\w][\w.-]*(?:/[\w][\w.-]*)?)(?:@(?P<revision>[\w][\w./-]*))?$")
_TOKENIZER_AND_CONFIG = ["*.json", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
# Other copies of the same weights, and files in folders, are not what transformers would load.
_NOT_WANTED = ["*/*", "consolidated*", "*.onnx*", "training_args*"]
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_fingerprinted: dict[str, str] = {}  # commit of each hub model that this process identified

# ── the hub ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def hub_errors(name: str, instead: str = "give a folder") -> Iterator[None]:
    """Turn every error of the hub's client into BadInput: one line with `name` and what to do.

    `instead` ends the lines for a name that neither disk nor hub has. Disk errors pass unchanged.
    """
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except (OSError, httpx.HTTPError, errors.HFValidationError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise BadInput(f"{name}: {_hub_problem(error, instead)}") from error


def _hub_problem(error: Exception, instead: str) -> str:
    from huggingface_hub import errors

    gated = "access is gated; accept its terms on the hub and set HF_TOKEN in .env"
    absent = f"neither on this disk nor (publicly) on the hub; set HF_TOKEN in .env, or {instead}"
    for kind, problem in (
        (errors.GatedRepoError, gated),
        (errors.RevisionNotFoundError, "the hub has no such revision"),
        (errors.RepositoryNotFoundError | errors.HFValidationError, absent),
        (errors.RemoteEntryNotFoundError, "a file that it needs is not on the hub"),
    ):
        if isinstance(error, kind):
            return problem
    # The response is that of the cause where snapshot_download found nothing on the disk either.
    responses = (getattr(one, "response", None) for one in (error, error.__cause__))
    status = {getattr(response, "status_code", 0) for response in responses}
    if 429 in status:
        return "the hub's rate limit is reached; wait some minutes, or set HF_TOKEN in .env"
    if status & {401, 403}:
        return "the hub refuses access; check HF_TOKEN in .env"
    return f"not on this disk, and the hub cannot be reached; connect, download it, or {instead}"


@functools.cache
def resolve(model: str) -> Path:
    """Folder with the files of `model`: the folder itself, or its snapshot, downloaded if missing.

    Raises BadInput for a missing folder and for whatever the hub does not give.
    """
    if naming.is_local(model):
        folder = Path(model).expanduser()
        if folder.suffix == ".gguf" and folder.is_file():
            raise _as_gguf(folder)
        if not folder.is_dir():
            raise BadInput(f"{model}: no such folder; give a model folder or org/name")
        return folder
    return _snapshot(model)


def _as_gguf(file: Path) -> BadInput:
    return BadInput(f"{file} is GGUF: import it first: uv run import_gguf.py --file {file}")


def cached_snapshot(model: str) -> Path | None:
    """Snapshot folder of a hub model if it is on this disk, complete or not; no network."""
    try:
        return _snapshot(model, local_files_only=True)
    except BadInput:
        return None  # `resolve` says why


def _snapshot(model: str, **options: Any) -> Path:
    """Download what is missing of a hub model; safetensors, or .bin where there are none."""
    from huggingface_hub import snapshot_download

    name = _HUB_NAME.match(model)
    if name is None or ".." in model:
        raise BadInput(f"{model!r} is neither a folder nor org/name[@revision]")

    def fetch(patterns: list[str]) -> Path:
        found = snapshot_download(
            name["repo"],
            revision=_fingerprinted.get(model) or name["revision"],
            token=os.environ.get("HF_TOKEN") or False,
            allow_patterns=patterns,
            ignore_patterns=_NOT_WANTED,
            **options,
        )
        return Path(found)

    with hub_errors(model):
        folder = fetch([*_TOKENIZER_AND_CONFIG, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            folder = fetch(["pytorch_model*.bin", "pytorch_model.bin.index.json"])
    return folder


# ── files of a folder ─────────────────────────────────────────────────────────────────────────────


def fingerprint(model: str) -> str:
    """SHA-256 that identifies the content of a model, without torch.

    A folder: the bytes of config.json, and name and bytes of each weight file, wherever it is. A
    hub model: its name and commit; a snapshot on this disk is used without asking the hub, and the
    process then stays with that commit.
    """
    digest = hashlib.sha256()
    if not naming.is_local(model):
        folder = cached_snapshot(model) or resolve(model)
        _fingerprinted[model] = folder.name
        digest.update(f"{model.partition('@')[0]}@{folder.name}".encode())
        return digest.hexdigest()
    folder = resolve(model)
    read_config(folder)  # says in one line what is wrong with it
    digest.update((folder / CONFIG).read_bytes())
    for file in weight_files(folder)[1]:
        if file.suffix == ".safetensors":
            safetensors_header(file)  # says in one line where it is truncated
        digest.update(f"\n{file.name} {content.sha256(file)}\n".encode())
    return digest.hexdigest()


def content_files(model: str) -> list[Path]:
    """What a result of a model depends on: config.json, the index where there is one, weights."""
    folder = resolve(model)
    index, weights = weight_files(folder)
    return [folder / CONFIG, *([index] if index else []), *weights]


def safetensors_header(file: Path) -> bytes:
    """The JSON header of a safetensors file. BadInput where the file is truncated."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        header = stream.read(length) if 0 <= length <= file.stat().st_size else b""
    if not header or len(header) != length:
        raise BadInput(f"{file} is truncated or corrupt: copy it again")
    return header


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of the language model in `folder`. BadInput where it is missing or damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{folder}: no {CONFIG}; this is not a model folder") from error
    except IsADirectoryError as error:
        raise BadInput(f"{path} is a folder: this is not a model folder") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON: copy the model again") from error
    return configuration.language_model(path, config)


def weight_files(folder: Path) -> tuple[Path | None, list[Path]]:
    """The index, where there is one, and the weight files, as transformers would choose them."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / single).is_file():
            return None, [folder / single]
        if (folder / index).is_file():
            names = sorted(set(weight_map(folder / index).values()))
            return folder / index, [folder / name for name in names]
        shards = sorted(folder.glob(single.replace(".", "-*-of-*.")))
        if shards:
            return None, shards
    if found := sorted(folder.glob("*.gguf")):
        raise _as_gguf(found[0])
    if any(folder.glob("adapter_model.*")):
        raise BadInput(f"{folder} holds an adapter only: merge it into its base model first")
    raise BadInput(f"{folder}: no weights; looked for *.safetensors and pytorch_model.bin")


def weight_map(index: Path) -> dict[str, str]:
    """Shard of each tensor, by name, from a weight index.

    Raises BadInput where it is not one, and for a shard that is missing or not beside it.
    """
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{index} is not a weight index: copy the model again") from error
    if not (found and isinstance(found, dict) and all(isinstance(n, str) for n in found.values())):
        raise BadInput(f"{index}: weight_map names no shard for each tensor: copy the model again")
    for name in sorted(set(found.values())):
        if Path(name).name != name:
            raise BadInput(f"{index} names {name!r}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise BadInput(f"{index.parent}: the shard {name} is missing; copy the model again")
    return found
