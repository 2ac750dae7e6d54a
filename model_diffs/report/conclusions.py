"""Conclusions by stated rules: a difference is named where its paired interval excludes none.

Numbers without an interval are set side by side, and nothing is concluded from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from model_diffs.core.step import Claims, Measure
from model_diffs.report.axes import SUMMARY, Declared
from model_diffs.report.formatting import number
from model_diffs.report.signature import Comparison, Missing, Sentence
from model_diffs.stats.estimates import Difference, Estimate, difference

OVERALL = ""
"""The axis of the sentences that stand at the top of the page."""
EXACT_RULE = (
    "Properties of weights, spectra of pooled hidden states and counts of steps have no interval: "
    "the numbers are set side by side and nothing is concluded from them."
)
NO_FILTERED = "No filtered model is among the comparisons: the base is the only reference."
LARGEST_RULE = (
    " The share is the largest over measured rates and steps, so its interval is simultaneous for "
    "all of them, and wider than that of its row in relearning.csv."
)


class Found(NamedTuple):
    """All numbers: by comparison label and measure key, and the base's own by key."""

    estimates: Mapping[tuple[str, str], Estimate]
    base: Mapping[str, Estimate]


class Drawn(NamedTuple):
    """What was concluded, what could not be compared, and what holds for all of it."""

    sentences: list[Sentence]
    unpaired: list[Missing]
    notes: list[str]


def paired_rule(reference: str, one: Estimate, logarithmic: bool) -> str:
    """The rule of every sentence about a difference."""
    assert one.sample is not None
    what, none = ("quotient", "one") if logarithmic else ("difference", "zero")
    return (
        f"Against {reference}: the same {one.sample.units} are resampled "
        f"{len(one.sample.resampled):,} times for both sides; a difference is named where the "
        f"95 % interval of the {what} excludes {none}."
        + (LARGEST_RULE if one.sample.candidates is not None else "")
    )


def ends(found: Difference, unit: str) -> str:
    """A difference and its interval, with so many digits that an excluded zero or one is seen."""
    text, interval = number(found.value, unit, found.low, found.high)
    near = found.low if found.direction > 0 else found.high
    written = interval.split(" to ")[0 if found.direction > 0 else 1]
    if found.direction and float(written.replace("−", "-")) == found.neutral:
        # What counts as excluded is off by more than 1e-9: nine digits show it.
        decimals = next((d for d in range(1, 9) if float(f"{near:.{d}f}") != found.neutral), 9)
        sign = "+" if unit == "change" else ""
        text, *both = (
            f"{end:{sign}.{decimals}f}".replace("-", "−")
            for end in (found.value, found.low, found.high)
        )
        interval = " to ".join(both)
    return f"{text} ({interval})"


def _beside(one: Estimate, other: Estimate, found: Difference, unit: str) -> str:
    value, reference = (number(each.value, unit)[0] for each in (one, other))
    if found.neutral:
        return f"{value} against {reference}, ratio {ends(found, 'ratio')}"
    return f"{value} against {reference}, difference {ends(found, 'change')}"


class _Writer:
    """Draws the sentences of one study."""

    def __init__(self, found: Found, base: str, comparisons: Sequence[Comparison]) -> None:
        self.found = found
        self.base = base
        self.filtered = next((one for one in comparisons if one.role == "filtered"), None)
        self.unpaired: dict[Missing, None] = {}
        self.intervals = 0

    def _reference(
        self, measure: Measure, comparison: Comparison, name: str
    ) -> tuple[Claims, Estimate | float] | None:
        """What is said against base or filtered model, and the number held against."""
        if name == "base":
            claims = measure.against_base
            own = self.found.base.get(measure.key)
            number_: Estimate | float | None = own
            if claims and claims.reference is not None:
                number_ = claims.reference
        else:
            claims, number_ = measure.against_filtered, None
            if self.filtered and comparison.label != self.filtered.label:
                number_ = self.found.estimates.get((self.filtered.label, measure.key))
        return None if claims is None or number_ is None else (claims, number_)

    def against(self, one: Declared, comparison: Comparison, name: str) -> Iterable[Sentence]:
        """Hold a measure against the base (or an unchanged model), or the filtered model."""
        measure, script = one.measure, one.script
        mine = self.found.estimates[comparison.label, measure.key]
        reference = self._reference(measure, comparison, name)
        if reference is None or mine.sample is None:
            return
        claims, other = reference
        found = difference(mine, other, measure.logarithmic)
        if found is None:
            if isinstance(other, float) or other.sample is not None:
                whose = "the base" if name == "base" else f"{self.filtered and self.filtered.short}"
                reason = (
                    f"{measure.heading} was not measured on the same texts or questions, or not "
                    f"with the same options, as for {whose}: no conclusion against it"
                )
                line = Missing(script.step.number, script.name, comparison.label, reason)
                self.unpaired[line] = None
            return
        self.intervals += 1
        claim = (claims.same, claims.above, claims.below)[found.direction]
        sources = [mine.source]
        if isinstance(other, float):
            # Against zero or one, the difference or quotient is the number itself.
            evidence = claims.shown.format(ends(found, measure.unit))
            whole = difference(mine, 1.0) if mine.sample.candidates is not None else None
            if whole is not None and found.direction > 0 and whole.direction == 0:
                evidence += "; complete recovery is not excluded"
        else:
            evidence = _beside(mine, other, found, measure.unit)
            sources.append(other.source)
        whose = "the base" if name == "base" else "the filtered model"
        rule = paired_rule(whose, mine, bool(found.neutral))
        key, axis, label = measure.key, measure.axis, comparison.label
        yield Sentence(axis, label, key, claim, f"{evidence}.", rule, tuple(sources))

    def side_by_side(
        self, measures: Sequence[Measure], comparison: Comparison
    ) -> Iterable[Sentence]:
        """Set the numbers of one axis that have no interval beside the filtered model's."""
        parts, sources = [], []
        for measure in measures:
            one = self.found.estimates.get((comparison.label, measure.key))
            if one is None:
                continue
            part = f"{measure.heading} {number(one.value, measure.unit)[0]}"
            sources.append(one.source)
            if self.filtered and comparison.label != self.filtered.label:
                other = self.found.estimates.get((self.filtered.label, measure.key))
                if other:
                    part += f" (filtered {number(other.value, measure.unit)[0]})"
                    sources.append(other.source)
            parts.append(part)
        if parts:
            first = measures[0]
            yield Sentence(
                first.axis, comparison.label, first.key, "without interval",
                "; ".join(parts) + ".", EXACT_RULE, tuple(sources),
            )  # fmt: skip

    def sentences(self, comparison: Comparison, declared: Sequence[Declared]) -> Iterable[Sentence]:
        """All sentences on one comparison, in the order of the axes."""
        for axis in dict.fromkeys(one.measure.axis for one in declared):
            exact = []
            for one in declared:
                if one.measure.axis != axis:
                    continue
                if not (one.measure.above or one.measure.against_base):
                    exact.append(one.measure)
                elif (comparison.label, one.measure.key) in self.found.estimates:
                    yield from self.against(one, comparison, "base")
                    yield from self.against(one, comparison, "filtered")
            if exact:
                yield from self.side_by_side(exact, comparison)


def draw(
    found: Found, base: str, comparisons: Sequence[Comparison], declared: Sequence[Declared]
) -> Drawn:
    """The sentences that the rules give: those of SUMMARY first, then by comparison and axis."""
    writer = _Writer(found, base, comparisons)
    sentences = [s for one in comparisons for s in writer.sentences(one, declared)]
    first = [s._replace(axis=OVERALL) for s in sentences if s.key in SUMMARY]
    notes = []
    if writer.intervals:
        notes.append(
            f"{writer.intervals} intervals of differences were computed, each at 95 % by itself. "
            f"If no model differed in anything, about {writer.intervals / 20:.0f} of them would "
            "still name a difference."
        )
    if writer.filtered is None:
        notes.append(NO_FILTERED)
    return Drawn([*first, *sentences], list(writer.unpaired), notes)
