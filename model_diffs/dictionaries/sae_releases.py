"""Releases of SAELens, and which SAEs are known for a model.

SAELens names releases and SAEs in them (`llama_scope_lxm_8x:l15m_8x`). Its registry is read where
that library is installed, without importing it; some releases are known here.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae_sizes import Sizes

REGISTRY = "pretrained_saes.yaml"
_GEMMA = re.compile(r"gemma-scope-(?:2b|9b|27b)-(?:pt|it)-(?:res|mlp|att|transcoders)")
_LLAMA = re.compile(r"llama_scope_lx([a-z]+)_(\d+)x")
_LLAMA_ID = re.compile(r"l(\d+)([a-z]+)_(\d+)x")
_REPOSITORIES = {"gpt2-small-res-jb": "jbloom/GPT2-Small-SAEs-Reformatted"}
# Trained on GPT-2 as TransformerLens gives it by default, with its writing weights centred; their
# configurations do not say so.
_CENTRED = {"jbloom/GPT2-Small-SAEs-Reformatted": True}
# GemmaScope's canonical SAE of a layer and width is the one nearest to 100 active features.
_CANONICAL = Sizes(l0="100")

# Model → SAEs that are published for it; the first is used where none is named.
KNOWN = {
    "google/gemma-2-2b": (
        *("google/gemma-scope-2b-pt-mlp", "google/gemma-scope-2b-pt-res"),
        *("google/gemma-scope-2b-pt-att", "google/gemma-scope-2b-pt-transcoders"),
    ),
    "google/gemma-2-9b": (
        *("google/gemma-scope-9b-pt-mlp", "google/gemma-scope-9b-pt-res"),
        "google/gemma-scope-9b-pt-att",
    ),
    "meta-llama/Llama-3.1-8B": (
        *("fnlp/Llama3_1-8B-Base-LXM-8x", "fnlp/Llama3_1-8B-Base-LXR-8x"),
        *("fnlp/Llama3_1-8B-Base-LXA-8x", "EleutherAI/sae-llama-3.1-8b-32x"),
    ),
    "meta-llama/Meta-Llama-3-8B": ("EleutherAI/sae-llama-3-8b-32x",),
    "EleutherAI/pythia-160m": ("EleutherAI/sae-pythia-160m-32k",),
    "openai-community/gpt2": ("jbloom/GPT2-Small-SAEs-Reformatted",),
    "Qwen/Qwen2.5-0.5B": ("NoamDiamant52/qwen2_0.5b_sae",),
}
# Not used unless named: they are of the residual stream of five layers, where the tool's default is
# the MLP's output of every layer.
_NAMED_ONLY = ("Qwen/Qwen2.5-0.5B",)
_ALIASES = {
    "gpt2": "openai-community/gpt2",
    "meta-llama/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
}
# Where the trainer of dictionary_learning leaves SAEs, below the working folder.
TRAINED = "dictionary_learning_demo"


class Release(NamedTuple):
    """Where a release of SAELens is."""

    repository: str
    folders: tuple[str, ...] | None
    """Of the SAEs that are meant; None is all."""
    sizes: Sizes | None = None
    """Which of several in a folder is meant."""


def centred(repository: str) -> bool | None:
    """Whether the SAEs of a repository were trained on centred activations, where that is known."""
    return _CENTRED.get(repository)


def locate(name: str) -> Release | None:
    """The repository and folders of `release[:id]`; None where `name` is no release.

    Raises BadInput for an id that the release does not have.
    """
    release, colon, identifier = name.partition(":")
    if "/" in release or not release:
        return None
    entry = _registered(release)
    if entry is not None:
        paths = {str(one["id"]): str(one["path"]) for one in entry["saes"]}
        if colon and identifier not in paths:
            some = ", ".join(list(paths)[:6])
            raise BadInput(f"{name}: the release {release} has no such SAE; it has {some}, …")
        chosen = (paths[identifier],) if colon else tuple(paths.values())
        return Release(str(entry["repo_id"]), chosen)
    return _by_rule(release, identifier)


def _by_rule(release: str, identifier: str) -> Release | None:
    folder = (identifier,) if identifier else None
    if release in _REPOSITORIES:
        return Release(_REPOSITORIES[release], folder)
    if _GEMMA.fullmatch(release.removesuffix("-canonical")):
        repository = "google/" + release.removesuffix("-canonical")
        if not release.endswith("-canonical"):
            return Release(repository, folder)
        inside = identifier.removesuffix("/canonical")
        return Release(repository, (inside,) if inside else None, _CANONICAL)
    if scope := _LLAMA.fullmatch(release):
        name = f"Llama3_1-8B-Base-L{{}}{scope[1].upper()}-{scope[2]}x"
        part = _LLAMA_ID.fullmatch(identifier)
        folder = (name.format(part[1]),) if part else None
        if identifier and not part:
            raise BadInput(f"{release}:{identifier}: an SAE of it is named as l15m_8x")
        return Release("fnlp/" + name.format("X"), folder)
    return None


def _registered(release: str) -> dict[str, Any] | None:
    """What SAELens' registry says of a release; None where it or the library is not there."""
    package = importlib.util.find_spec("sae_lens")
    places = package.submodule_search_locations if package else None
    file = Path(places[0]) / REGISTRY if places else None
    if file is None or not file.is_file():
        return None
    # The file has some 40,000 lines, which YAML takes half a minute to read whole.
    found = re.search(rf"(?ms)^{re.escape(release)}:\n(.*?)(?=^\S|\Z)", file.read_text("utf-8"))
    entry = yaml.safe_load(found[1]) if found else None
    return entry if isinstance(entry, dict) and entry.get("saes") else None


def of_model(model: str) -> str:
    """The SAEs to use for a model where none are named: those trained in the working folder, else
    the first that are known. Raises BadInput, with what is known, where there are none."""
    name = model.partition("@")[0].rstrip("/")
    label = Path(name).name.lower()
    trained = Path(TRAINED)
    if trained.is_dir():
        for folder in sorted(path for path in trained.rglob("*") if path.is_dir()):
            if label in folder.name.lower() and any(folder.rglob("ae.pt")):
                return str(folder)
        if any(trained.rglob("ae.pt")):
            return str(trained)
    name = _ALIASES.get(name, name)
    known = KNOWN.get(name, ())
    if known and name not in _NAMED_ONLY:
        return known[0]
    others = f"no SAEs are known for {naming.model_label(model)}"
    if known:
        others = f"known for it: {', '.join(known)}"
    raise BadInput(
        f"--sae is missing: there are no SAEs for {model} below ./{TRAINED}/; {others}; name a "
        "folder, org/name or a release of SAELens with --sae"
    )
