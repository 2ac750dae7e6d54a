"""Conclusions by stated rules: a difference is named where its paired interval excludes none.

What has no interval is set side by side and nothing is concluded from it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from model_diffs.report.estimates import Difference, Estimate, difference
from model_diffs.report.formatting import number
from model_diffs.report.phrases import PHRASES, Claim
from model_diffs.report.readers import READERS
from model_diffs.report.signature import Comparison, Measure, Missing, Sentence, Source

OVERALL = ""
"""The axis of the few sentences that stand for a whole comparison."""
# Size, function, what is said, what is held, what comes back.
_SUMMARY = ("relative_change", "dh_forget", "hazard_accuracy", "hazard_inside", "recovered_share")
EXACT_RULE = (
    "Properties of the weights, spectra of pooled states and counts of steps carry no interval: "
    "the numbers are set side by side and nothing is concluded from them."
)
NO_FILTERED_RULE = "A model that never learned is the reference; without one there is none."
LARGEST_RULE = (
    " The share is the largest over measured rates and steps, so its interval is made to hold for "
    "all of them at once, and is wider than that of its row in relearning.csv."
)


class Found(NamedTuple):
    """All estimates: by comparison label and measure key, and the base's own by key."""

    estimates: Mapping[tuple[str, str], Estimate]
    base: Mapping[str, Estimate]


class Drawn(NamedTuple):
    """What was concluded, what could not be, and what holds for all of it."""

    sentences: list[Sentence]
    unpaired: list[Missing]
    notes: list[str]


def paired_rule(reference: str, sample: str, resamples: int, logarithmic: bool) -> str:
    """The rule of every sentence that names a difference, or says that none can be told."""
    what, none = ("quotient", "one") if logarithmic else ("difference", "zero")
    return (
        f"Against {reference}: the same {sample} are drawn anew {resamples:,} times for both "
        f"sides; a difference is named where the 95 % interval of the {what} excludes {none}."
    )


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


def _ends(found: Difference, unit: str) -> tuple[str, str]:
    """A difference and its interval, with so many digits that what it excludes is seen."""
    text, interval = number(found.value, unit, found.low, found.high)
    near = found.low if found.direction > 0 else found.high
    neutral = f"{found.neutral:.0f}"
    written = interval.split(" to ")[0 if found.direction > 0 else 1]
    if found.direction and float(written.replace("−", "-")) == float(neutral):
        decimals = 1
        # What counts as excluded is off by more than 1e-9: nine digits show it.
        while decimals < 9 and float(f"{near:.{decimals}f}") == found.neutral:
            decimals += 1
        plus = "+" if unit == "change" else ""
        ends = [f"{end:{plus}.{decimals}f}" for end in (found.value, found.low, found.high)]
        text, low, high = (end.replace("-", "−") for end in ends)
        interval = f"{low} to {high}"
    return text, f"({interval})"


def _against(one: Estimate, other: Estimate, found: Difference, measure: Measure) -> str:
    value, _ = number(one.value, measure.unit)
    reference, _ = number(other.value, measure.unit)
    if found.neutral:
        text, ends = _ends(found, "ratio")
        return f"{value} against {reference}, {text} times as much {ends}"
    text, ends = _ends(found, "change")
    return f"{value} against {reference}, difference {text} {ends}"


def _say(claim: Claim, found: Difference) -> str:
    return (claim.same, claim.above, claim.below)[found.direction]


# ── one comparison ────────────────────────────────────────────────────────────────────────────────


class _Writer:
    """Draws the sentences of one study."""

    def __init__(self, found: Found, base: str, comparisons: Sequence[Comparison]) -> None:
        self.found = found
        self.base = base
        self.comparisons = comparisons
        self.filtered = next((c for c in comparisons if c.filtered), None)
        self.sentences: list[Sentence] = []
        self.keys: list[str] = []
        self.unpaired: dict[Missing, None] = {}
        self.intervals = 0

    def _write(
        self, measure: Measure, comparison: Comparison, text: str, rule: str, *sources: Source
    ) -> None:
        self.keys.append(measure.key)
        self.sentences.append(Sentence(measure.axis, comparison.label, text, rule, sources))

    def _not_paired(self, measure: Measure, comparison: Comparison, reference: str) -> None:
        reader = READERS[measure.key]
        reason = (
            f"{measure.label} was not measured on the same texts or questions, or not in the same "
            f"way, as in {reference}: no conclusion against it"
        )
        self.unpaired[Missing(reader.step, reader.script, comparison.label, reason)] = None

    def _rule(self, one: Estimate, reference: str, found: Difference) -> str:
        assert one.sample is not None
        resamples = len(one.sample.resampled)
        rule = paired_rule(reference, one.sample.units, resamples, bool(found.neutral))
        return rule + (LARGEST_RULE if one.sample.candidates is not None else "")

    def against_base(self, measure: Measure, comparison: Comparison) -> None:
        """Hold a measure against the base's own value, or what an unchanged model would have."""
        phrases = PHRASES[measure.key]
        one = self.found.estimates[comparison.label, measure.key]
        own = self.found.base.get(measure.key) if phrases.neutral is None else phrases.neutral
        if phrases.base is None or own is None or one.sample is None:
            return
        found = difference(one, own, measure.logarithmic)
        if found is None:
            if isinstance(own, float) or own.sample is not None:
                self._not_paired(measure, comparison, "the base")
            return
        self.intervals += 1
        if isinstance(own, float):
            # Against zero or one, the difference or quotient is the number itself.
            text, ends = _ends(found, measure.unit)
            numbers, sources = f"{phrases.shown.format(text)} {ends}", [one.source]
        else:
            numbers = _against(one, own, found, measure)
            sources = [one.source, own.source]
        more = ""
        if one.sample.candidates is not None:
            whole = difference(one, 1.0)
            if found.direction > 0 and whole is not None and whole.direction == 0:
                more = "; that all of it is back is not excluded"
        text = f"{comparison.short} {_say(phrases.base, found)}: {numbers}{more}."
        self._write(measure, comparison, text, self._rule(one, "the base", found), *sources)

    def against_filtered(self, measure: Measure, comparison: Comparison) -> None:
        """Hold a measure against the filtered model's."""
        if self.filtered is None or comparison.label == self.filtered.label:
            return
        one = self.found.estimates[comparison.label, measure.key]
        other = self.found.estimates.get((self.filtered.label, measure.key))
        if other is None or one.sample is None or other.sample is None:
            return
        found = difference(one, other, measure.logarithmic)
        if found is None:
            self._not_paired(measure, comparison, self.filtered.short)
            return
        self.intervals += 1
        text = (
            f"{comparison.short} {_say(PHRASES[measure.key].filtered, found)}: "
            f"{_against(one, other, found, measure)}."
        )
        rule = self._rule(one, "the filtered model", found)
        self._write(measure, comparison, text, rule, one.source, other.source)

    def side_by_side(self, measures: Sequence[Measure], comparison: Comparison) -> None:
        """Set the numbers of one axis that have no interval beside the filtered model's."""
        parts, sources = [], []
        for measure in measures:
            one = self.found.estimates.get((comparison.label, measure.key))
            if one is None:
                continue
            text, _ = number(one.value, measure.unit)
            part = f"{measure.label} {text}"
            sources.append(one.source)
            if self.filtered and comparison.label != self.filtered.label:
                other = self.found.estimates.get((self.filtered.label, measure.key))
                if other:
                    part += f" (filtered {number(other.value, measure.unit)[0]})"
                    sources.append(other.source)
            parts.append(part)
        if parts:
            text = f"{comparison.short}, without interval: {'; '.join(parts)}."
            self._write(measures[0], comparison, text, EXACT_RULE, *sources)


def _overall(writer: _Writer) -> list[Sentence]:
    """The few sentences that stand for a whole comparison, once more, ahead of the others."""
    first = []
    for comparison in writer.comparisons:
        if writer.filtered is None:
            text = (
                "No filtered model is among the comparisons: conclusions are against "
                f"{writer.base} alone."
            )
            first.append(Sentence(OVERALL, comparison.label, text, NO_FILTERED_RULE, ()))
        first += [
            sentence._replace(axis=OVERALL)
            for sentence, key in zip(writer.sentences, writer.keys, strict=True)
            if sentence.comparison == comparison.label and key in _SUMMARY
        ]
    return first


def draw(
    found: Found, base: str, comparisons: Sequence[Comparison], measures: Sequence[Measure]
) -> Drawn:
    """All sentences that the rules give, by comparison in the order of the measures."""
    writer = _Writer(found, base, comparisons)
    for comparison in comparisons:
        for axis in dict.fromkeys(measure.axis for measure in measures):
            mine = [measure for measure in measures if measure.axis == axis]
            for measure in mine:
                if measure.key in PHRASES and (comparison.label, measure.key) in found.estimates:
                    writer.against_base(measure, comparison)
                    writer.against_filtered(measure, comparison)
            exact = [measure for measure in mine if measure.key not in PHRASES]
            if exact:
                writer.side_by_side(exact, comparison)
    notes = []
    if writer.intervals:
        notes.append(
            f"{writer.intervals} intervals of differences were looked at, each at 95 % for itself. "
            f"If no model differed in anything, about {writer.intervals / 20:.0f} of them would "
            "name a difference all the same."
        )
    if writer.filtered is None:
        notes.append("No filtered model is among the comparisons: the base is the only reference.")
    return Drawn([*_overall(writer), *writer.sentences], list(writer.unpaired), notes)
