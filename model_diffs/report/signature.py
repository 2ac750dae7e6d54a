"""What the page, the figure and signature.csv are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from model_diffs.core.step import Measure
from model_diffs.core.tables import Source

if TYPE_CHECKING:
    from model_diffs.stats.estimates import Estimate

Role = Literal["filtered", "control", "unlearned"]


class Comparison(NamedTuple):
    """The base and one changed model."""

    label: str
    """Folder under the outroot."""
    base: str
    changed: str
    """Labels of the two models."""
    short: str
    """The changed model's name without the base's, for headings."""
    role: Role = "unlearned"
    """`filtered` never learned and is the reference; a `control` is changed without unlearning."""
    harmless: bool = False
    """A control made by training the base on harmless texts, as strongly as an unlearned model."""


class Figure(NamedTuple):
    """A figure of a step. Its path is relative to the outroot and without ending; `{comparison}`
    and `{model}` stand for folders."""

    path: str
    caption: str


class Axis(NamedTuple):
    """One aspect of the signature, a section of the page."""

    key: str
    title: str
    question: str
    reading: str
    """How to read its numbers and figures."""
    steps: tuple[int, ...] = ()
    """Numbers of the steps with measures or figures of it."""
    figures: tuple[Figure, ...] = ()


class Missing(NamedTuple):
    """A result that is not there, stale or failed."""

    step: int
    script: str
    comparison: str
    """Label; empty where the result serves all comparisons."""
    reason: str
    """Worded to follow 'step 8, rmu:'."""


class Sentence(NamedTuple):
    """A conclusion drawn by a rule from intervals, or numbers without one side by side."""

    axis: str
    comparison: str
    key: str
    """Of the (first) measure that it is about."""
    claim: str
    """What is said after the model's name."""
    evidence: str
    """The numbers."""
    rule: str
    sources: tuple[Source, ...]


class Verdict(NamedTuple):
    """Whether a measure tells the unlearned models from harmless training (`verdicts.py`)."""

    separates: Literal["yes", "no", "unknown"]
    evidence: str
    alike: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """By label of each unlearned model that is not told apart: the controls that it is like."""
    all_alike: bool = False
    """Not one of them is."""
    both_sides: bool = False
    """Some lie above all controls and some below."""


@dataclass(frozen=True)
class Signature:
    """All numbers and conclusions of the comparisons with one base."""

    base: str
    comparisons: Sequence[Comparison]
    axes: Sequence[Axis]
    """All of them; a section is shown for those with a measure."""
    measures: Sequence[Measure]
    """Those with at least one number."""
    values: "Mapping[tuple[str, str], Estimate]"
    """By comparison label and measure key; absent where there is none."""
    base_values: "Mapping[str, Estimate]"
    """By measure key: the base's own number, where it has one."""
    sentences: Sequence[Sentence]
    missing: Sequence[Missing]
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By comparison label and measure key: why there is no number although the step ran."""
    notes: Sequence[str] = ()
    """What holds for all conclusions."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """See `conditions.py`."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By measure key."""

    @property
    def filtered(self) -> Comparison | None:
        """The reference model that never learned."""
        return next((one for one in self.comparisons if one.role == "filtered"), None)

    def alike(self, label: str, key: str) -> bool:
        """Whether this number is not told apart from controls."""
        return key in self.verdicts and label in self.verdicts[key].alike

    def of_axis(self, key: str) -> list[Measure]:
        """Its measures that have a number."""
        return [measure for measure in self.measures if measure.axis == key]
