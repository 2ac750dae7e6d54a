"""How a difference is said: the words for each measure that has an interval."""

from collections.abc import Mapping
from typing import NamedTuple


class Claim(NamedTuple):
    """What is said after a model's name."""

    above: str
    """Where the interval of the difference lies above zero (that of a quotient above one)."""
    below: str
    same: str
    """Where it does not exclude it."""


class Phrases(NamedTuple):
    """The claims that a measure can make."""

    base: Claim | None
    """Against the base; None where the number cannot be on both sides of an unchanged model's."""
    filtered: Claim
    """Against the filtered model."""
    neutral: float | None = None
    """What `base` is held against; None where the base has a number of its own."""
    shown: str = "{}"
    """How the number is then written."""


def _moved(split: str) -> Phrases:
    return Phrases(
        None,
        Claim(
            f"moves {split} states farther than filtering does",
            f"moves {split} states less far than filtering does",
            f"is not told apart from filtering in how far {split} states move",
        ),
    )


def _aimed(what: str) -> Phrases:
    return Phrases(
        Claim(
            f"{what} forget inputs more than retain inputs",
            f"{what} retain inputs more than forget inputs",
            f"{what} forget and retain inputs alike, as far as can be told",
        ),
        Claim(
            f"{what} forget inputs, over retain inputs, more than filtering does",
            f"{what} forget inputs, over retain inputs, less than filtering does",
            f"is not told apart from filtering in how selectively it {what} forget inputs",
        ),
        1.0,
        "forget over retain {}",
    )


def _sensitive(what: str, split: str) -> Phrases:
    return Phrases(
        Claim(
            f"raises the {what} on {split} texts",
            f"lowers the {what} on {split} texts",
            f"does not change the {what} on {split} texts as far as can be told",
        ),
        Claim(
            f"has a higher {what} on {split} texts than the filtered model",
            f"has a lower {what} on {split} texts than the filtered model",
            f"is not told apart from filtering by the {what} on {split} texts",
        ),
        1.0,
        "{} times the base's",
    )


def _told(third: str) -> Phrases:
    return Phrases(
        Claim(
            f"makes forget texts easier to tell in the {third} blocks",
            f"makes forget texts harder to tell in the {third} blocks",
            f"leaves the probes of the {third} blocks as they were, as far as can be told",
        ),
        Claim(
            f"leaves forget texts easier to tell in the {third} blocks than filtering does",
            f"leaves forget texts harder to tell in the {third} blocks than filtering does",
            f"is not told apart from filtering by the probes of the {third} blocks",
        ),
        0.0,
        "AUC {}",
    )


def _known(what: str) -> Phrases:
    return Phrases(
        Claim(
            f"{what} more often than the base",
            f"{what} less often than the base",
            f"{what} as often as the base, as far as can be told",
        ),
        Claim(
            f"{what} more often than the filtered model",
            f"{what} less often than the filtered model",
            f"{what} as often as the filtered model, as far as can be told",
        ),
    )


PHRASES: Mapping[str, Phrases] = {
    "dh_forget": _moved("forget"),
    "dh_retain": _moved("retain"),
    "separation_change": Phrases(
        Claim(
            "drives forget and retain texts apart",
            "brings forget and retain texts closer together",
            "leaves forget and retain texts as far apart as they were, as far as can be told",
        ),
        Claim(
            "leaves forget and retain texts further apart than filtering does",
            "leaves forget and retain texts less far apart than filtering does",
            "is not told apart from filtering in how far apart forget and retain texts lie",
        ),
        0.0,
        "cosine distance {}",
    ),
    "row_space_selectivity": _aimed("reads"),
    "effect_selectivity": _aimed("acts on"),
    "lipschitz_forget": _sensitive("response to noise", "forget"),
    "lipschitz_retain": _sensitive("response to noise", "retain"),
    "jacobian_forget": _sensitive("Jacobian norm", "forget"),
    "jacobian_retain": _sensitive("Jacobian norm", "retain"),
    "probe_early": _told("early"),
    "probe_middle": _told("middle"),
    "probe_late": _told("late"),
    "hazard_accuracy": _known("answers hazard questions rightly"),
    "adjacent_accuracy": _known("answers adjacent questions rightly"),
    "general_accuracy": _known("answers general questions rightly"),
    "hazard_inside": _known("answers hazard questions rightly, read from inside,"),
    "recovered_share": Phrases(
        Claim(
            "gives back knowledge that the attack never showed",
            "knows less than before the attack at every rate and step",
            "gives back nothing that can be told from zero",
        ),
        Claim(
            "gives back more than the filtered model",
            "gives back less than the filtered model",
            "is not told apart from the filtered model by what it gives back",
        ),
        0.0,
        "share of the gap {}",
    ),
}
