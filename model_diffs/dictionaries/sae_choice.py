"""Which SAE is for which layer of a model, at which site."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae_files
from model_diffs.dictionaries.options import SaeChoice
from model_diffs.dictionaries.sae import Sae
from model_diffs.dictionaries.sae_sizes import Sizes
from model_diffs.dictionaries.sae_sources import Found, describe, find
from model_diffs.models import configuration, sites
from model_diffs.models.architectures import SITES
from model_diffs.models.checkpoints import Checkpoint

SHOWN = 6  # SAEs that a message lists
ANY = Sizes()


def for_model(found: Iterable[Found], parameters: Iterable[str]) -> list[Found]:
    """The same with their sites as a model with these parameters has them: where no norm follows
    the MLP, its output after a norm is its output."""
    names, changed = list(parameters), []
    for one in found:
        if one.place.site in SITES:
            place = one.place._replace(site=sites.of_model(one.place.site, names))
            one = replace(one, place=place)
        changed.append(one)
    return changed


def site_of(name: str, found: Sequence[Found], asked: str) -> str:
    """The site to read: as asked, or with `auto` that of the SAEs, mlp_out where there are several.

    Raises BadInput where they do not say it or there is no telling which.
    """
    if asked != "auto":
        return sites.canonical(asked)
    at = {one.place.site for one in found if one.place.site in SITES}
    if len(at) == 1:
        return str(at.pop())
    preferred = at & {"mlp_out", "mlp_out_after_norm"}
    if len(preferred) == 1:
        return str(preferred.pop())
    has = f"it has SAEs of {', '.join(sorted(map(str, at)))}" if at else "its SAEs do not say"
    raise BadInput(f"{name}: which activation is meant? {has}: name one with --site")


@dataclass(frozen=True)
class Choice:
    """The checkpoint of each layer."""

    site: str
    chosen: dict[int, Found]
    missing: list[int]
    """Layers that were asked for and have none."""

    @property
    def entering(self) -> str | None:
        """What the SAEs encode, where it is another site: they are transcoders."""
        return next((one.place.entering for one in self.chosen.values()), None)


def choose(
    name: str,
    found: Sequence[Found],
    layers: Sequence[int] | None,
    site: str = "auto",
    sizes: Sizes = ANY,
) -> Choice:
    """The checkpoint of each layer at a site; without `layers`, of all that there are.

    A single checkpoint that says nothing of its place is taken for the one layer that is asked for.
    Where a layer has several, `sizes` decides. Raises BadInput where no layer has any, or one has
    several still.
    """
    site = site_of(name, found, site)
    if len(found) == 1 and found[0].place.layer is None and layers is not None and len(layers) == 1:
        return Choice(site, {layers[0]: found[0]}, [])
    release = found[0].source.release
    if release and release.sizes:
        sizes = Sizes(
            *(a if a is not None else b for a, b in zip(sizes, release.sizes, strict=True))
        )
    of_layer: dict[int, list[Found]] = {}
    for one in found:
        if one.place.layer is not None and one.place.site in (site, None):
            of_layer.setdefault(one.place.layer, []).append(one)
    wanted = sorted(of_layer) if layers is None else layers
    missing = [layer for layer in wanted if layer not in of_layer]
    if len(missing) == len(wanted):
        what = f"{site} of layer {missing[0]}" if missing else site
        raise BadInput(
            f"{name}: no SAE for {what}; it has {_some(map(describe, found))}: change --layers or "
            "--site"
        )
    chosen = {n: _one_of(name, n, of_layer[n], sizes) for n in wanted if n in of_layer}
    if len({one.place.entering for one in chosen.values()}) > 1:
        raise BadInput(f"{name}: SAEs and transcoders of one site: name a folder of one kind")
    return Choice(site, chosen, missing)


def _one_of(name: str, layer: int, several: list[Found], wanted: Sizes) -> Found:
    left = wanted.narrow(several, lambda one: one.sizes)
    if len(left) == 1:
        return left[0]
    among = left or several
    has = "; ".join(
        f"--{kind} {' '.join(values)}"
        for kind, values in Sizes.differing([one.sizes for one in among]).items()
    )
    problem = f"{len(left)} SAEs" if left else "no such SAE"
    raise BadInput(
        f"{name}: {problem} for layer {layer}: {_some(one.name for one in among)}; name one folder"
        + (f", or choose by {has}" if has else "")
    )


def _some(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:SHOWN]) + (", …" if len(every) > SHOWN else "")


def read(found: Found, model: Checkpoint, centred: bool | None = None) -> Sae:
    """The SAE of a checkpoint on this disk, as it belongs to its place in a model.

    `centred`: whether it encodes activations without their mean, where the checkpoint does not say.
    Raises BadInput where nobody says and it makes a difference.
    """
    sae, place = sae_files.read_sae(found.folder, found.format), found.place
    said = found.centred if centred is None else centred
    # Only a model with LayerNorms, which take the mean off, can be centred.
    matters = (place.entering or place.site) in sites.WRITTEN and sites.has_layer_norms(
        model.entries
    )
    if said is None and matters:
        raise BadInput(
            f"{describe(found)} does not say whether it was trained on TransformerLens' centred "
            "weights (center_writing_weights): pass --centred or --no-centred"
        )
    return replace(sae, transcoder=place.entering is not None, centred=bool(said) and matters)


def choose_for(
    name: str, model: Checkpoint, layers: Sequence[int] | None, site: str, options: SaeChoice
) -> Choice:
    """`choose` for a model; layers without an SAE are named on stderr.

    Raises BadInput also for SAEs of layers that the model does not have.
    """
    found, count = (
        for_model(find(name), model.entries),
        configuration.blocks(model.model, model.config),
    )
    site = sites.of_model(site, model.entries)
    sizes = Sizes(options.width, options.l0, options.trainer)
    choice = choose(name, found, layers, site, sizes)
    if choice.missing:
        missing = ", ".join(map(str, choice.missing))
        said = f"no SAE for {choice.site} of layer {missing}: skipped"
        print(f"warning: {name}: {said}", file=sys.stderr)
    if max(choice.chosen) >= count:
        raise BadInput(
            f"{name} has an SAE for layer {max(choice.chosen)}, and {model.model} has layers "
            f"0-{count - 1}: use the SAEs of this model, or name --layers"
        )
    return choice
