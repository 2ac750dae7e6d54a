"""How models and comparisons are named: in folders, messages and legends."""

import os
from pathlib import Path

from model_diffs.core.errors import BadInput


def is_local(model: str) -> bool:
    """Whether `model` names a folder here rather than a model on the hub."""
    return Path(model).is_dir() or model.startswith((".", "/", "~")) or model.count("/") > 1


def model_label(model: str) -> str:
    """Folder name of a model.

    `org/name@revision` → `org_name@revision`; a local folder gives its last component, its parent's
    when that is `unlearned_model`.
    """
    if not is_local(model):
        label = model.replace("/", "_")
    else:
        folder = Path(os.path.abspath(os.path.expanduser(model)))
        label = folder.parent.name if folder.name == "unlearned_model" else folder.name
    if (
        not model.strip()
        or not label
        or label.startswith(".")
        or any(c in label for c in '\\\0\n\r\t:*?"<>|')
    ):
        raise BadInput(f"{model!r} does not give a folder name; use a model id or a named folder")
    return label


def comparison_label(model_a: str, model_b: str) -> str:
    """Folder name of a comparison: `<A>__to__<B>`."""
    return f"{model_label(model_a)}__to__{model_label(model_b)}"


def short_label(model: str, base: str) -> str:
    """A model's name as a legend has room for it: without the base's, where it begins with that."""
    label = model_label(model)
    return label.removeprefix(base + "__") or label
