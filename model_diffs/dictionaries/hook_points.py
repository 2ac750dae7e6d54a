"""Layer and site from the names of hook points, modules and folders."""

import re
from typing import NamedTuple

OTHER = "another place"


class Place(NamedTuple):
    """Where in a model a dictionary belongs; None is not known."""

    layer: int | None
    site: str | None
    """One of `models.sites.SITES`, or OTHER: what it reconstructs."""
    entering: str | None = None
    """What it encodes, where that is another site: it is a transcoder."""


NOWHERE = Place(None, None)
# TransformerLens: its MLP and attention outputs are those after a norm that may follow.
_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out_after_norm",
    "ln2.hook_normalized": "mlp_in_before_gain",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_hidden",
    "hook_mlp_out": "mlp_out_after_norm",
}
_HOOK = re.compile(r"(?:^|/)blocks\.(\d+)\.([\w.]+)$")
_LAYER = re.compile(r"(?:^|[._/-])(?:layers?[._]?|(?:h|blocks)[._])(\d+)(?!\d)", re.IGNORECASE)
# Modules and folders: what stands beside the layer's number decides, the first that fits.
_SITES = (
    (re.compile(r"resid_mid"), "resid_mid"),
    (re.compile(r"resid_pre"), "resid_pre"),
    (re.compile(r"resid"), "resid_post"),
    (re.compile(r"hook_z|attn_z"), "attn_z"),
    (re.compile(r"norm|ln\d|mlp_in|act"), OTHER),
    (re.compile(r"attn|attention"), "attn_out"),
    (re.compile(r"mlp|feed_forward|moe"), "mlp_out"),
    (re.compile(r"^\W*$"), "resid_post"),
)


def hook_point(name: str) -> Place:
    """What a hook of TransformerLens is: `blocks.3.hook_mlp_out`."""
    found = _HOOK.search(name)
    return Place(int(found[1]), _HOOKS.get(found[2], OTHER)) if found else NOWHERE


def place_of(name: str) -> Place:
    """Layer and site from the name of a hook point, a module or a folder.

    `blocks.3.hook_mlp_out` (TransformerLens), `layers.3.mlp` (sparsify), `resid_post_layer_3`
    (dictionary_learning).
    """
    if _HOOK.search(name):
        return hook_point(name)
    found = _LAYER.search(name)
    if found is None:
        return NOWHERE
    layer, after = int(found[1]), name[found.end() :].lower()
    beside = after.strip("._/") or re.sub(
        r"^(gpt_neox|model|transformer|h)$", "", name[: found.start()]
    )
    site = next((site for pattern, site in _SITES if pattern.search(beside.lower())), OTHER)
    return Place(layer, site)
