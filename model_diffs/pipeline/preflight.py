"""Checks before a long run: texts and questions."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Literal, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.data.questions import load_questions
from model_diffs.data.texts import Split, check_disjoint, read_split

# Above these ratios of sizes or median lengths the splits also differ in size or length.
UNEVEN_SIZES, UNEVEN_LENGTHS = 1.5, 1.5
FEW = 50

Level = Literal["ok", "warning", "error"]
Count = Callable[[Sequence[str]], list[int]]
"""Number of tokens of each text."""


class Finding(NamedTuple):
    """One line of the report."""

    level: Level
    subject: str
    """What was checked, in a word or two."""
    says: str
    """What was found; for warnings and errors also what to do."""


def attempt(subject: str, check: Callable[[], str]) -> Finding:
    """What `check` returns as an `ok`, or its BadInput as an error."""
    try:
        return Finding("ok", subject, check())
    except BadInput as error:
        return Finding("error", subject, str(error))


def normalised(text: str) -> str:
    """A text without case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _check_split(split: Split) -> Iterator[Finding]:
    samples, subject = len(split.texts), f"{split.name} texts"
    repeated = samples - len(set(split.texts))
    if repeated:
        says = f"{repeated} of {samples} lines of {split.path} are repeats and may be both trained "
        yield Finding("warning", subject, f"{says}on and held out: remove them")
    if samples < FEW:
        says = f"{samples} samples in {split.path}: intervals will be wide; add some"
        yield Finding("warning", subject, says)


def _check_overlap(forget: Split, retain: Split) -> Finding:
    def disjoint() -> str:
        check_disjoint(forget, retain)
        return "forget and retain share no line"

    found = attempt("overlap", disjoint)
    near = {normalised(t) for t in forget.texts} & {normalised(t) for t in retain.texts} - {""}
    if found.level == "error" or not near:
        return found
    says = f"{len(near)} texts are in both splits but for case and punctuation, such as "
    return Finding("warning", "overlap", f"{says}{min(near)[:50]!r}: remove them from one")


def _check_lengths(splits: Sequence[Split], count: Count | None, longest: int) -> Iterator[Finding]:
    counted = count or (lambda lines: [len(line.split()) for line in lines])
    lengths = {split.name: counted(split.texts) for split in splits}
    says = ", ".join(f"{n} {median(v):.0f} (longest {max(v)})" for n, v in lengths.items())
    says = f"median {'tokens' if count else 'words'}: {says}"
    low, high = sorted(max(1.0, median(v)) for v in lengths.values())
    if high > UNEVEN_LENGTHS * low:
        says += "; a probe may separate the splits by length alone: match them"
        yield Finding("warning", "lengths", says)
    else:
        yield Finding("ok", "lengths", says)
    cut = sum(number > longest for values in lengths.values() for number in values)
    if count and cut:
        says = f"{cut} samples are cut at {longest} tokens: --max-length"
        yield Finding("warning", "lengths", says)


def check_texts(
    forget_text: str, retain_text: str, count: Count | None, max_length: int
) -> Iterator[Finding]:
    """Both splits: readable, disjoint, balanced, of similar length, without repeats.

    `count` counts tokens; without it words are counted and `max_length` is not checked.
    """
    splits = []
    for path, name in ((forget_text, "forget"), (retain_text, "retain")):
        try:
            splits.append(read_split(path, name))
            yield from _check_split(splits[-1])
        except BadInput as error:
            yield Finding("error", f"{name} texts", str(error))
    if len(splits) < 2:
        return
    yield _check_overlap(*splits)
    forget, retain = (len(split.texts) for split in splits)
    says = f"{forget} forget and {retain} retain samples"
    if max(forget, retain) > UNEVEN_SIZES * min(forget, retain):
        yield Finding("warning", "balance", f"{says}: the smaller is cycled; even them out")
    else:
        yield Finding("ok", "balance", says)
    yield from _check_lengths(splits, count, max_length)


def check_questions(path: str, forget_text: str, retain_text: str) -> Finding:
    """The questions are readable, and no text contains an answered question word for word."""
    try:
        questions = load_questions(path)
        splits = [read_split(forget_text, "forget"), read_split(retain_text, "retain")]
    except BadInput as error:
        return Finding("error", "questions", str(error))
    told = {normalised(line) for split in splits for line in split.texts}
    same = [q.id for q in questions if normalised(q.sentences()[q.answer]) in told]
    if same:
        says = f"{len(same)} answers are word for word in the texts (such as {same[0]}): accuracy "
        return Finding("warning", "questions", f"{says}would measure the sentence; reword them")
    domains = Counter(question.domain for question in questions)
    says = ", ".join(f"{count} {domain}" for domain, count in domains.items())
    return Finding("ok", "questions", f"{says}; none is word for word in the texts")
