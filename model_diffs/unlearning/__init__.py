"""Ten ways to make a language model forget: a method is a loss, the trainer is the loop.

Standard library only at import: `unlearn.py` reads the names for its arguments.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model_diffs.core.errors import BadInput


@dataclass(frozen=True)
class Method:
    """What the trainer has to know of a method to call its loss."""

    name: str
    """Also the name of its loss function in `module`."""
    module: str
    """File of its family in this package."""
    says: str
    """One line for the help and the model card."""
    uses_retain: bool = True
    paired: bool = False
    """The k-th forget text goes with the k-th retain text."""
    reference_log_probs: tuple[str, ...] = ()
    """Splits whose log-probability under the base the loss needs."""
    reference_states: tuple[str, ...] = ()
    """Splits whose hidden states under the base the loss needs, at the target blocks."""
    targets: bool = False
    """Reads hidden states at the blocks of --layer-id."""
    adversary: bool = False
    """Perturbs the hidden states at --lat-layer."""

    def loss(self) -> Callable[..., Any]:
        """The loss function: (network, pair of batches, reference, settings) → Terms."""
        module = importlib.import_module(f"model_diffs.unlearning.{self.module}")
        return getattr(module, self.name)


_BOTH = ("forget", "retain")
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("ga_simple", "gradient_ascent", "gradient ascent on forget", uses_retain=False),
        Method("ga", "gradient_ascent", "gradient ascent on forget, descent on retain"),
        Method("grad_diff", "gradient_ascent", "retain loss minus weighted forget loss"),
        Method(
            "dpo",
            "preference",
            "retain texts preferred to forget texts, pair by pair",
            paired=True,
            reference_log_probs=_BOTH,
        ),
        Method(
            "npo",
            "preference",
            "forget texts made less likely than under the base",
            reference_log_probs=("forget",),
        ),
        Method("simnpo", "preference", "forget texts made less likely, no reference"),
        Method(
            "rmu",
            "representation",
            "forget states steered to a random direction, retain states kept",
            reference_states=("retain",),
            targets=True,
        ),
        Method(
            "cb",
            "representation",
            "direction of forget states rerouted, that of retain states kept",
            reference_states=("retain",),
            targets=True,
        ),
        Method(
            "lat",
            "adversarial",
            "gradient ascent under the states an adversary would choose",
            adversary=True,
        ),
        Method(
            "cb_lat",
            "adversarial",
            "rerouting under the states an adversary would choose",
            reference_states=("retain",),
            targets=True,
            adversary=True,
        ),
    )
}


def get_method(name: str) -> Method:
    """The method of that name. Raises BadInput, naming those there are."""
    if name not in METHODS:
        raise BadInput(f"no unlearning method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
