"""Conclusions by stated rules: a difference is named where its paired interval excludes none.

Numbers without an interval are set side by side, and nothing is concluded from them.
"""

from collections.abc import Iterator, Mapping, Sequence

from model_diffs.core.step import Claims, Measure
from model_diffs.report.axes import AT_A_GLANCE, Declared
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


Numbers = Mapping[tuple[str, str], Estimate]
"""By comparison label (empty: the base's own) and measure key."""


def paired_rule(reference: str, one: Estimate, logarithmic: bool) -> str:
    """The rule of every sentence about a difference."""
    assert one.sample is not None
    what, none = ("quotient", "one") if logarithmic else ("difference", "zero")
    return (
        f"Against {reference}: the same {one.sample.units} are resampled "
        f"{len(one.sample.resampled):,} times for both sides; a difference is named where the "
        f"95 % interval of the {what} excludes {none}."
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
        ends = (found.value, found.low, found.high)
        text, *both = (f"{end:{sign}.{decimals}f}".replace("-", "−") for end in ends)
        interval = " to ".join(both)
    return f"{text} ({interval})"


def _beside(one: Estimate, other: Estimate, found: Difference, unit: str) -> str:
    value, reference = (number(each.value, unit)[0] for each in (one, other))
    if found.neutral:
        return f"{value} against {reference}, ratio {ends(found, 'ratio')}"
    return f"{value} against {reference}, difference {ends(found, 'change')}"


class _Writer:
    """Draws the sentences of one study."""

    def __init__(self, numbers: Numbers, comparisons: Sequence[Comparison]) -> None:
        self.numbers = numbers
        self.filtered = next((one for one in comparisons if one.role == "filtered"), None)
        self.controls = [one for one in comparisons if one.role == "control"]
        self.unpaired: dict[Missing, None] = {}
        self.intervals = 0

    def _filtered(self, key: str, comparison: Comparison) -> Estimate | None:
        """The filtered model's number, for the others."""
        if self.filtered is None or comparison.label == self.filtered.label:
            return None
        return self.numbers.get((self.filtered.label, key))

    def against(
        self,
        one: Declared,
        comparison: Comparison,
        reference: str,
        claims: Claims | None,
        other: Estimate | float | None,
    ) -> Iterator[Sentence]:
        """Compare a number with that of `reference`: another estimate, or a fixed number."""
        measure, script = one.measure, one.script
        mine = self.numbers[comparison.label, measure.key]
        if claims is None or other is None or mine.sample is None:
            return
        found = difference(mine, other, measure.logarithmic)
        if found is None:
            if isinstance(other, float) or other.sample is not None:
                reason = (
                    f"{measure.heading} was not measured on the same texts or questions, or not "
                    f"with the same options, as for {reference}: no conclusion against it"
                )
                line = Missing(script.step.number, script.name, comparison.label, reason)
                self.unpaired[line] = None
            return
        self.intervals += 1
        if isinstance(other, float):
            # Against zero or one, the difference or quotient is the number itself.
            sources = [mine.source]
            evidence = claims.shown.format(ends(found, measure.unit))
        else:
            sources = [mine.source, other.source]
            evidence = _beside(mine, other, found, measure.unit)
        yield Sentence(
            axis=measure.axis,
            comparison=comparison.label,
            key=measure.key,
            claim=(claims.same, claims.above, claims.below)[found.direction],
            evidence=f"{evidence}.",
            rule=paired_rule(reference, mine, bool(found.neutral)),
            sources=tuple(sources),
        )

    def side_by_side(
        self, measures: Sequence[Measure], comparison: Comparison
    ) -> Iterator[Sentence]:
        """Set the numbers of one axis that have no interval beside those of the filtered model and,
        for an unlearned one, the controls."""
        parts, sources = [], []
        for measure in measures:
            one = self.numbers.get((comparison.label, measure.key))
            if one is None:
                continue
            part = f"{measure.heading} {number(one.value, measure.unit)[0]}"
            sources.append(one.source)
            beside = {"filtered": self._filtered(measure.key, comparison)}
            for control in self.controls * (comparison.role == "unlearned"):
                beside[control.short] = self.numbers.get((control.label, measure.key))
            known = {name: other for name, other in beside.items() if other}
            shown = (f"{n} {number(other.value, measure.unit)[0]}" for n, other in known.items())
            sources += [other.source for other in known.values()]
            parts.append(part + (f" ({', '.join(shown)})" if known else ""))
        if parts:
            at, evidence = (measures[0].axis, comparison.label, measures[0].key), "; ".join(parts)
            yield Sentence(*at, "without interval", f"{evidence}.", EXACT_RULE, tuple(sources))

    def sentences(self, comparison: Comparison, declared: Sequence[Declared]) -> Iterator[Sentence]:
        """All sentences on one comparison, in the order of the axes."""
        for axis in dict.fromkeys(one.measure.axis for one in declared):
            own = [one for one in declared if one.measure.axis == axis]
            exact = [m for _, m in own if not (m.above or m.against_base)]
            for one in own:
                measure, key = one.measure, one.measure.key
                if measure in exact or (comparison.label, key) not in self.numbers:
                    continue
                claims = measure.against_base
                base: Estimate | float | None = claims.reference if claims else None
                base = self.numbers.get(("", key)) if base is None else base
                filtered = self._filtered(key, comparison)
                yield from self.against(one, comparison, "the base", claims, base)
                yield from self.against(
                    one, comparison, "the filtered model", measure.against_filtered, filtered
                )
            yield from self.side_by_side(exact, comparison)


def draw(
    numbers: Numbers, comparisons: Sequence[Comparison], declared: Sequence[Declared]
) -> tuple[list[Sentence], list[Missing], list[str]]:
    """What the rules give: sentences (first those of AT_A_GLANCE, then all by comparison and axis),
    what could not be compared, and notes on all of it."""
    writer = _Writer(numbers, comparisons)
    sentences = [s for one in comparisons for s in writer.sentences(one, declared)]
    first = [s._replace(axis=OVERALL) for s in sentences if s.key in AT_A_GLANCE]
    notes = []
    if writer.intervals:
        notes.append(
            f"{writer.intervals} intervals of differences were computed, each at 95 % by itself. "
            f"If no model differed in anything, about {writer.intervals / 20:.0f} of them would "
            "still name a difference."
        )
    notes += [] if writer.filtered else [NO_FILTERED]
    return [*first, *sentences], list(writer.unpaired), notes
