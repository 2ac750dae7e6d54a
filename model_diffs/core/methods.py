"""The methods of `unlearn.py`: names, one line about each, colours, how each makes its model.

Light on purpose: figures, shells, checks and `unlearn.py --help` read it without torch. What does
the work registers itself under these names: losses (`model_diffs/unlearning/losses.py`), edits of
stored weights (`model_diffs/unlearning/edits.py`).
"""

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """What is said of a method wherever it is named."""

    name: str
    says: str
    """One line for the help and the model card."""
    colour: str
    options: tuple[str, ...] = ()
    """Options of `unlearn.py` that act on its loss."""
    making: Literal["trained", "edited"] = "trained"
    """By training on a loss, or from the stored weights alone."""
    trains_on: tuple[str, ...] = ("forget", "retain")
    """Splits that its loss reads; `text` is the file of --text."""
    inputs: tuple[str, ...] = ()
    """Options that no method has but those that name them here: refused elsewhere."""
    required: tuple[str, ...] = ()
    """Those of them that must be given."""
    role: Literal["unlearned", "control"] = "unlearned"
    """What its models are in a study that does not say."""


_PAIRS = ("beta", "logprob_reduction")
_STATES = ("layer_id", "alpha")
_ADVERSARY = ("lat_layer", "lat_eps", "lat_steps", "lat_step_size")
# Colours stay apart from one another, from grey and from blue, also in greyscale print.
_ALL = [
    Method("ga_simple", "gradient ascent on forget", "#8c564b", trains_on=("forget",)),
    Method("ga", "gradient ascent on forget, descent on retain", "#d62728", ("retain_weight",)),
    Method("grad_diff", "retain loss minus weighted forget loss", "#e377c2", ("forget_weight",)),
    Method("dpo", "retain texts preferred to forget texts, pair by pair", "#bcbd22", _PAIRS),
    Method(
        "npo",
        "forget texts made less likely than under the base",
        "#e07b00",
        (*_PAIRS, "retain_weight"),
    ),
    Method(
        "simnpo",
        "forget texts made less likely, no reference",
        "#c9a227",
        ("beta", "gamma", "retain_weight"),
    ),
    Method(
        "rmu",
        "forget states steered to a random direction, retain states kept",
        "#7b3fa0",
        (*_STATES, "steering_coeff"),
    ),
    Method(
        "cb",
        "direction of forget states rerouted, that of retain states kept",
        "#2a9d5c",
        (*_STATES, "cb_target"),
    ),
    Method(
        "lat",
        "gradient ascent under the states an adversary would choose",
        "#17a2a8",
        ("layer_id", *_ADVERSARY, "retain_weight"),
    ),
    Method(
        "cb_lat",
        "rerouting under the states an adversary would choose",
        "#c2185b",
        (*_STATES, "cb_target", *_ADVERSARY),
    ),
    Method(
        "task_arithmetic",
        "what fine-tuning on forget adds to the base, subtracted from it",
        "#4e79a7",
        trains_on=("forget",),
        inputs=("scale",),
    ),
    Method(
        "refusal",
        "one sentence in answer to every question on forgotten facts, retain texts kept",
        "#f28e8e",
        ("retain_weight",),
        trains_on=("text", "retain"),
        inputs=("text",),
        required=("text",),
    ),
    Method(
        "prune",
        "neurons removed that matter most to forget and least to retain, then retain training",
        "#6b8e23",
        trains_on=("retain",),
        inputs=("pruned",),
    ),
    Method(
        "noise_distil",
        "noise on all matrices, then distillation from a teacher",
        "#b07aa1",
        trains_on=("text",),
        inputs=("text", "teacher", "noise_share"),
        required=("teacher",),
    ),
    Method("retain_only", "next-token training on retain", "#9c755f", trains_on=("retain",)),
    Method(
        "finetune",
        "next-token training on one file, nothing to forget",
        "#6b6b6b",
        trains_on=("text",),
        inputs=("text", "like"),
        role="control",
    ),
    Method(
        "noise",
        "random weight changes with the norms of another model's, no training",
        "#a8a8a8",
        making="edited",
        trains_on=(),
        inputs=("like", "spectrum"),
        required=("like",),
        role="control",
    ),
    Method(
        "quantise",
        "weights of the blocks rounded to few bits, no training",
        "#c9c9c9",
        making="edited",
        trains_on=(),
        inputs=("bits",),
        role="control",
    ),
]
METHODS = {method.name: method for method in _ALL}
TRAINED = [name for name, method in METHODS.items() if method.making == "trained"]
UNLEARNING = [
    name for name, method in METHODS.items() if method.role == "unlearned" and not method.required
]
"""Those that need no further model or file."""


def known(name: str) -> None:
    """Raise ValueError, naming the methods there are, for any other name."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)}")


def method_of(label: str) -> str:
    """Unlearning method that a model's label or short name tells, else empty.

    `base__npo__seed1` and `npo__seed1` give `npo`, `…-unfiltered-cb-lat` gives `cb_lat`.
    """
    label = label.replace("-", "_")
    parts = [part for part in label.split("__") if part in METHODS]
    # Published names end in the method: …-unfiltered-cb-lat.
    published = [name for name in METHODS if label.endswith(f"_{name}")]
    return parts[0] if parts else max(published, key=len, default="")
