"""Before a long run: are the models to be had, of one architecture, and how large are they?"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.models.checkpoints import Checkpoint, match
from model_diffs.pipeline.preflight import Finding
from model_diffs.pipeline.preflight_machine import Sizes


class Models:
    """What was found of each model: a checkpoint where its files are here, else its sizes."""

    def __init__(self) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}
        self.sizes: list[Sizes] = []


def _cached_folder(model: str) -> Path | None:
    """The hub model's snapshot on this disk, if all its files are there; nothing is fetched."""
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = model.partition("@")
    try:
        found = snapshot_download(repository, revision=revision or None, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError, ValueError):
        return None
    return Path(found) if any(Path(found).glob("*.safetensors")) else None


def _ask_hub(model: str) -> tuple[Finding, Sizes | None]:
    """Whether the hub gives a model, and its size; no weight is fetched."""
    import os

    import httpx
    from huggingface_hub import HfApi, errors

    repository, _, revision = model.partition("@")
    try:
        info = HfApi(token=os.environ.get("HF_TOKEN") or False).model_info(
            repository, revision=revision or None, files_metadata=True
        )
    except errors.GatedRepoError:
        says = f"{model} is gated: accept its terms on the hub and set HF_TOKEN in .env"
        return Finding("error", "models", says), None
    except errors.RepositoryNotFoundError:
        return Finding("error", "models", f"{model}: no such, or a private, model"), None
    except (OSError, errors.HfHubHTTPError, errors.HFValidationError, httpx.HTTPError):
        says = f"{model}: not on this disk, and the hub cannot be reached; connect or download it"
        return Finding("error", "models", says), None
    files = [one for one in info.siblings or [] if one.rfilename.endswith(".safetensors")]
    size = sum(one.size or 0 for one in files)
    weights = info.safetensors.total if info.safetensors else size // 2
    says = f"{model}: on the hub, {size / 1e9:.1f} GB to download"
    return Finding("ok", "models", says), Sizes(weights, size, size)


def check_models(
    models: Sequence[str],
    found: Models,
    cached: Callable[[str], Path | None] = _cached_folder,
    ask: Callable[[str], tuple[Finding, Sizes | None]] = _ask_hub,
) -> Iterator[Finding]:
    """Every model is to be had, and those that are here have one architecture.

    The first is the base. Fills `found`; downloads nothing.
    """
    for model in models:
        folder = Path(model) if naming.is_local(model) else cached(model)
        if folder is None:
            finding, sizes = ask(model)
            yield finding
            if sizes is not None:
                found.sizes.append(sizes)
            continue
        try:
            checkpoint = Checkpoint.open(model if naming.is_local(model) else str(folder))
        except BadInput as error:
            yield Finding("error", "models", str(error))
            continue
        stored = sum(file.stat().st_size for file in checkpoint.files)
        found.checkpoints[model] = checkpoint
        found.sizes.append(Sizes(checkpoint.weights, stored, 0))
        says = f"{model}: {found.sizes[-1].weights / 1e6:.1f} M weights, {checkpoint.model_type}"
        yield Finding("ok", "models", says)
    yield from _check_alike(models[0], found)


def _check_alike(base: str, found: Models) -> Iterator[Finding]:
    if base not in found.checkpoints:
        return
    for model, checkpoint in found.checkpoints.items():
        if model == base:
            continue
        try:
            match(found.checkpoints[base], checkpoint)
        except BadInput as error:
            yield Finding("error", "architecture", str(error))
        else:
            yield Finding("ok", "architecture", f"{model} can be subtracted from {base}")


def check_tokenizers(found: Models) -> Iterator[Finding]:
    """The tokenizers of all models that are here split texts alike."""
    from model_diffs.models.loading import check_same_tokenizer, load_tokenizer

    loaded = []
    for model, checkpoint in found.checkpoints.items():
        try:
            loaded.append((model, load_tokenizer(str(checkpoint.folder))))
        except BadInput as error:
            yield Finding("error", "tokenizers", str(error))
    for model, tokenizer in loaded[1:]:
        try:
            check_same_tokenizer(loaded[0][0], loaded[0][1], model, tokenizer)
        except BadInput as error:
            yield Finding("error", "tokenizers", str(error))
        else:
            yield Finding("ok", "tokenizers", f"{model} splits texts as {loaded[0][0]} does")


def token_counter(checkpoint: Checkpoint) -> Callable[[Sequence[str]], list[int]] | None:
    """A function from texts to their numbers of tokens; None where there is no tokenizer."""
    from model_diffs.models.loading import load_tokenizer

    try:
        tokenizer = load_tokenizer(str(checkpoint.folder))
    except BadInput:
        return None  # said by check_tokenizers

    def count(lines: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(lines))["input_ids"]]

    return count
