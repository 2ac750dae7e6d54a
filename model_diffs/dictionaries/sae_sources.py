"""Where sparse autoencoders are: a folder or hub name, and which of its checkpoints is for what."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae_files
from model_diffs.dictionaries.sae_files import CONFIG_OF, LEARNING, SAELENS, WEIGHTS, WEIGHTS_OF
from model_diffs.models.files import hub_errors

OTHER = "another place"


class Place(NamedTuple):
    """Where in a model a dictionary belongs; None is not known."""

    layer: int | None
    site: str | None
    """mlp_out, mlp_hidden, residual or OTHER."""


NOWHERE = Place(None, None)


class Found(NamedTuple):
    """A checkpoint; its weights may still lie on the hub."""

    folder: Path
    name: str
    """Path below what was named."""
    format: str
    place: Place
    repository: str = ""
    """Where the weights come from, for those of the hub."""


_LAYER = re.compile(r"(?:^|[._/-])(?:layers?|h|blocks)[._](\d+)(?!\d)", re.IGNORECASE)
# What stands beside the layer's number decides, the first that fits.
_SITES = (
    (re.compile(r"attn|attention|hook_z|resid_mid|norm|ln\d|mlp_in|act"), OTHER),
    (re.compile(r"resid_pre"), "entering"),
    (re.compile(r"resid"), "residual"),
    (re.compile(r"mlp\.hook_post"), "mlp_hidden"),
    (re.compile(r"mlp|feed_forward|moe"), "mlp_out"),
    (re.compile(r"^\W*$"), "residual"),
)


def place_of(name: str) -> Place:
    """Layer and site from the name of a hook point.

    `layers.3.mlp` (sparsify), `blocks.3.hook_mlp_out` (SAELens), `resid_post_layer_3`
    (dictionary_learning). What enters block n is what leaves block n − 1.
    """
    found = _LAYER.search(name)
    if found is None:
        return NOWHERE
    layer, after = int(found[1]), name[found.end() :].lower()
    beside = after.strip("._/") or re.sub(
        r"^(gpt_neox|model|transformer|h)$", "", name[: found.start()]
    )
    site = next((site for pattern, site in _SITES if pattern.search(beside.lower())), OTHER)
    if site == "entering":
        return Place(layer - 1, "residual") if layer else Place(layer, OTHER)
    return Place(layer, site)


def _place(name: str, kind: str, config: Mapping[str, Any]) -> Place:
    """What the configuration says, else the innermost folder name that says something."""
    said = ""
    if kind == SAELENS:
        said = str(config.get("hook_name") or (config.get("metadata") or {}).get("hook_name") or "")
    elif kind == LEARNING:
        trainer = config.get("trainer") or {}
        said, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
        if isinstance(layer, int) and place_of(said).layer is None:
            site = place_of(f"{said}_layer_0").site if said else None
            return Place(layer, site)
    places = map(place_of, (said, *reversed(name.split("/"))))
    return next((place for place in places if place.layer is not None), NOWHERE)


def find(source: str) -> list[Found]:
    """All checkpoints of a folder or hub name, by the weight files of the known formats.

    Of the hub only configurations are fetched. Raises BadInput where there is none.
    """
    root, repository = Path(source).expanduser(), ""
    if not naming.is_local(source):
        from huggingface_hub import list_repo_files, snapshot_download

        repository = source
        with hub_errors(source):
            files = list_repo_files(**_on_hub(source))
            patterns = [f"*{name}" for name in set(CONFIG_OF.values())]
            root = Path(snapshot_download(**_on_hub(source), allow_patterns=patterns))
    elif root.is_dir():
        files = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    else:
        raise BadInput(f"{source}: no such folder; give a folder with an SAE or org/name")
    found = []
    for file in sorted(map(Path, files)):
        if file.name in WEIGHTS:
            folder, kind = root / file.parent, WEIGHTS[file.name]
            config = sae_files.read_config(folder / CONFIG_OF[kind])
            name = "" if folder == root else file.parent.as_posix()
            place = _place(name or Path(os.path.abspath(root)).name, kind, config)
            found.append(Found(folder, name, kind, place, repository))
    if not found:
        raise BadInput(f"{source}: no SAE in it; looked for {', '.join(WEIGHTS)}")
    return found


def _on_hub(source: str) -> dict[str, Any]:
    """Repository, revision and token, as the hub's client takes them."""
    repository, _, revision = source.partition("@")
    token = os.environ.get("HF_TOKEN") or False
    return {"repo_id": repository, "revision": revision or None, "token": token}


def fetch(found: Found) -> Found:
    """The same with its weights on this disk."""
    if not found.repository:
        return found
    from huggingface_hub import hf_hub_download

    file = (Path(found.name) / WEIGHTS_OF[found.format]).as_posix()
    with hub_errors(found.repository):
        path = hf_hub_download(filename=file, **_on_hub(found.repository))
    return found._replace(folder=Path(path).parent)


def choose(
    source: str, found: Sequence[Found], layers: Sequence[int] | None, site: str
) -> dict[int, Found]:
    """The checkpoint of each layer at a site; without `layers`, of all that there are.

    A single checkpoint that says nothing of its place is taken for the one layer that is asked for.
    Raises BadInput where a layer has none, or several.
    """
    if len(found) == 1 and found[0].place.layer is None and layers is not None and len(layers) == 1:
        return {layers[0]: found[0]}
    of_layer: dict[int, list[Found]] = {}
    for one in found:
        if one.place.layer is not None and one.place.site in (site, None):
            of_layer.setdefault(one.place.layer, []).append(one)
    wanted = sorted(of_layer) if layers is None else layers
    missing = [layer for layer in wanted if layer not in of_layer]
    if missing or not wanted:
        has = ", ".join(map(describe, found[:6])) + (", …" if len(found) > 6 else "")
        what = f"{site} of layer {missing[0]}" if missing else site
        raise BadInput(f"{source}: no SAE for {what}; it has {has}: change --layers or --site")
    for layer in wanted:
        if len(of_layer[layer]) > 1:
            names = ", ".join(one.name for one in of_layer[layer][:4])
            raise BadInput(f"{source}: several SAEs for layer {layer} ({names}): name one folder")
    return {layer: of_layer[layer][0] for layer in wanted}


def describe(found: Found) -> str:
    """Its name and what it is for, as messages say it."""
    layer, site = found.place
    where = "a place it does not name" if layer is None else f"{site or 'some place'} of {layer}"
    return f"{found.name or found.folder.name} ({where})"


def files_of(found: Found) -> list[Path]:
    """What a checkpoint is read from, once it lies on this disk."""
    return [found.folder / CONFIG_OF[found.format], found.folder / WEIGHTS_OF[found.format]]
