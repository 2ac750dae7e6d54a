"""What a report says, before it is drawn or written: comparisons, measures, values, sentences.

Every value knows the cell, or the cells, that it was taken from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Source(NamedTuple):
    """Where a number can be looked up."""

    path: str
    """Of the table, relative to the outroot, with forward slashes."""
    column: str
    """The column of the value (its interval stands in `<column>_low` and `_high`)."""
    rows: str
    """Which rows, and how they were combined: `layer=3, split=forget` or `mean over layer 0-3`."""

    def __str__(self) -> str:
        return f"{self.path}: {self.column}" + (f", {self.rows}" if self.rows else "")


@dataclass(frozen=True)
class Value:
    """One number with its 95 % interval, where its step gave one."""

    value: float
    source: Source
    low: float | None = None
    high: float | None = None


class Measure(NamedTuple):
    """One column of the signature."""

    key: str
    """Column of signature.csv; the interval's ends are `<key>_low` and `<key>_high`."""
    axis: str
    """Key of the axis it belongs to."""
    label: str
    """Whole words: heading of the table and label in the figure."""
    meaning: str
    """One sentence: what the number is, with its unit."""
    unit: str
    """How to write it: `ratio`, `share`, `accuracy` (both 0 to 1), `change`, `rank` or `steps`."""
    unchanged: float | None
    """The value that a model identical to the base has; None where it is not defined (rank of ΔW)
    or where the base's own value is the reference (see `Signature.base_values`)."""
    logarithmic: bool = False
    """Distances between values are ratios."""


class Figure(NamedTuple):
    """A figure that a step drew."""

    path: str
    """Relative to the outroot; `{comparison}` and `{model}` stand for folders."""
    caption: str


class Axis(NamedTuple):
    """One aspect of the signature, with what a reader needs to understand it."""

    key: str
    title: str
    question: str
    reading: str
    """How to read figure and numbers; plain text, some sentences."""
    steps: tuple[int, ...]
    """Steps of the pipeline that it is made from."""
    figures: tuple[Figure, ...]


class Comparison(NamedTuple):
    """The base and one changed model."""

    label: str
    """Folder under the outroot."""
    base: str
    """Label of the base model."""
    changed: str
    """Label of the changed model."""
    short: str
    """The changed model's name without the base's, for headings."""
    filtered: bool
    """It never learned: the reference that the others are held against."""


class Missing(NamedTuple):
    """A table that a step has not left, so that values or an axis are left out."""

    step: int
    script: str
    comparison: str
    """Label, or empty where the step is one of the whole study."""
    reason: str
    """`not run`, `stale …`, `failed …`: as one would say it after 'step 8, for rmu:'."""


class Sentence(NamedTuple):
    """A conclusion that a stated rule drew from intervals."""

    axis: str
    comparison: str
    text: str
    """Shows its numbers."""
    rule: str
    """The rule, in words."""
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Signature:
    """Everything that signature.csv, signature.png and report.html are made from."""

    base: str
    comparisons: Sequence[Comparison]
    axes: Sequence[Axis]
    """Those with at least one value."""
    measures: Sequence[Measure]
    """Those with at least one value."""
    values: Mapping[tuple[str, str], Value]
    """By comparison label and measure key; absent where there is none."""
    base_values: Mapping[str, Value]
    """By measure key: the base's own value, where it has one (accuracies)."""
    sentences: Sequence[Sentence]
    missing: Sequence[Missing]
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By comparison label and measure key: why there is no value although the step ran."""
    notes: Sequence[str] = ()
    """What holds for all conclusions: how many intervals were looked at, what was not there."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: `models` [{label, id, …}], `texts` [{split, path, texts, tokens, sha256}],
    `runs` [{step, comparison, folder, device, dtype, seconds, versions, …}]."""
