"""Where sparse autoencoders are, and which of them is for what.

find("models/miniature-sae")                             a folder
find("google/gemma-scope-2b-pt-mlp")                     a repository of the hub, [@revision]
find("google/gemma-scope-2b-pt-mlp/layer_5/width_16k")   a folder in one
find("gpt2-small-res-jb:blocks.8.hook_resid_pre")        a release of SAELens, and one of its SAEs
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae_files, sae_releases
from model_diffs.dictionaries.hook_points import Place
from model_diffs.dictionaries.sae_files import FORMATS
from model_diffs.dictionaries.sae_sizes import Sizes, sizes_of
from model_diffs.models.files import hub_errors

_REPOSITORY = re.compile(r"^([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w.-]*))?(?:/(.+?))?/?$")


@dataclass(frozen=True)
class Source:
    """A place with SAEs: a folder of this disk, or of a repository."""

    name: str
    """As it was given."""
    root: Path
    repository: str = ""
    revision: str | None = None
    inside: str = ""
    """Only what is in this folder of it."""
    release: sae_releases.Release | None = None

    @property
    def on_hub(self) -> dict[str, Any]:
        """Repository, revision and token, as the hub's client takes them."""
        token = os.environ.get("HF_TOKEN") or False
        return {"repo_id": self.repository, "revision": self.revision, "token": token}


@dataclass(frozen=True)
class Found:
    """A checkpoint; its weights may still lie on the hub."""

    source: Source
    folder: Path
    name: str
    """Path below the source's root."""
    format: str
    place: Place
    sizes: Sizes
    centred: bool | None = None
    """Whether it was trained on centred activations; None where nobody says."""


# ── what there is ─────────────────────────────────────────────────────────────────────────────────


def source_of(name: str) -> Source:
    """The place that a name is of. Raises BadInput for one that cannot be any."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Source(name, folder)
    if name.startswith((".", "/", "~")):
        raise BadInput(f"{name}: no such folder; give a folder with an SAE or org/name")
    if (release := sae_releases.locate(name)) is not None:
        return Source(name, Path(), release.repository, None, "", release)
    parts = _REPOSITORY.match(name)
    if parts is None or ".." in name:
        raise BadInput(
            f"{name}: no such folder, no release of SAELens that is known here, and no name of the "
            "hub; give a folder with an SAE, org/name or org/name/folder"
        )
    return Source(name, Path(), parts[1], parts[2], parts[3] or "")


def _listed(source: Source) -> tuple[Path, list[str]]:
    """Root and files of a source; of the hub, only configurations are fetched."""
    if not source.repository:
        there = (path for path in source.root.rglob("*") if path.is_file())
        return source.root, [path.relative_to(source.root).as_posix() for path in there]
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        with hub_errors(source.name):
            files = [file for file in list_repo_files(**source.on_hub) if _wanted(source, file)]
            configs = {form.config for form in FORMATS.values()} - {""}
            patterns = [file for file in files if file.rpartition("/")[2] in configs]
            # With no pattern at all everything would be fetched.
            root = Path(snapshot_download(**source.on_hub, allow_patterns=patterns or ["-"]))
            return root, files
    except BadInput as error:
        if "cannot be reached" not in str(error):
            raise
        try:  # what was downloaded earlier
            root = Path(snapshot_download(**source.on_hub, local_files_only=True))
        except (OSError, ValueError):
            raise error from None
    local = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return root, [file for file in local if _wanted(source, file)]


def _wanted(source: Source, file: str) -> bool:
    inside = source.inside
    if source.release and source.release.folders is not None:
        return any(file.startswith(f"{folder}/") for folder in source.release.folders)
    return not inside or file == inside or file.startswith(f"{inside}/")


def find(name: str) -> list[Found]:
    """All checkpoints of a folder, a hub name or a release, by the weight files of the formats.

    Raises BadInput where there is none.
    """
    source = source_of(name)
    root, files = _listed(source)
    whole = source.repository or Path(os.path.abspath(root)).name
    known, found = sae_releases.centred(source.repository), list[Found]()
    for file in sorted(files):
        for kind, form in FORMATS.items():
            if file != form.weights and not file.endswith(f"/{form.weights}"):
                continue
            below = file.removesuffix(form.weights).rstrip("/")
            if f"{below}/{form.config}".lstrip("/") not in files and form.needs_config:
                raise BadInput(f"{name}: {file} has no {form.config} beside it; copy the SAE again")
            config = sae_files.config_of(root / below, kind)
            place = form.place(f"{whole}/{below}", config)
            centred = known if known is not None else sae_files.is_centred(config)
            if kind != sae_files.SAELENS:
                centred = bool(centred)
            sizes = sizes_of(f"{whole}/{below}", config)
            found.append(Found(source, root / below, below, kind, place, sizes, centred))
    if not found:
        looked = ", ".join(form.weights for form in FORMATS.values())
        raise BadInput(f"{name}: no SAE in it; looked for {looked}")
    return found


# ── opening ───────────────────────────────────────────────────────────────────────────────────────


def fetch(found: Found) -> Found:
    """The same with its weights on this disk."""
    if not found.source.repository:
        return found
    from huggingface_hub import hf_hub_download

    file = (Path(found.name) / FORMATS[found.format].weights).as_posix()
    with hub_errors(found.source.name):
        path = Path(hf_hub_download(filename=file, **found.source.on_hub))
    depth = len(Path(FORMATS[found.format].weights).parts)
    return replace(found, folder=path.parents[depth - 1])


def files_of(found: Found) -> list[Path]:
    """What a checkpoint is read from, once it lies on this disk."""
    return sae_files.files_of(found.folder, found.format)


def describe(found: Found) -> str:
    """Its name and what it is for, as messages say it."""
    layer, site, entering = found.place
    where = "a place it does not name" if layer is None else f"{site or 'some place'} of {layer}"
    where += f" from {entering}" if entering else ""
    return f"{found.name or found.folder.name} ({where})"
