"""What can be known to be wrong before a long run: texts and questions."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Literal, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.data import texts
from model_diffs.data.texts import Split

# Beyond these ratios of sizes or typical lengths a contrast is one of size or length, too.
UNEVEN_SIZES, UNEVEN_LENGTHS = 1.5, 1.5
FEW = 50

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """One line of the report."""

    level: Level
    subject: str
    """What was looked at, in a word or two."""
    says: str
    """What was found, and for warnings and errors what to do."""


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────


def normalised(text: str) -> str:
    """A text without case, punctuation and spacing: two that agree in this say the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _check_split(split: Split) -> Iterator[Finding]:
    repeated = len(split.texts) - len(set(split.texts))
    if repeated:
        yield Finding(
            "warning",
            f"{split.name} texts",
            f"{repeated} of {len(split.texts)} lines of {split.path} are repeats: a repeat may "
            "stand in training and in what is held out; remove them",
        )
    if len(split.texts) < FEW:
        yield Finding(
            "warning",
            f"{split.name} texts",
            f"{len(split.texts)} samples in {split.path}: intervals will be wide; add some",
        )


def _check_overlap(forget: Split, retain: Split) -> Iterator[Finding]:
    try:
        texts.check_disjoint(forget, retain)
    except BadInput as error:
        yield Finding("error", "overlap", str(error))
        return
    near = {normalised(t) for t in forget.texts} & {normalised(t) for t in retain.texts} - {""}
    if near:
        yield Finding(
            "warning",
            "overlap",
            f"{len(near)} texts stand in both splits but for case and punctuation, such as "
            f"{min(near)[:50]!r}: remove them from one",
        )
    else:
        yield Finding("ok", "overlap", "forget and retain share no line")


def check_texts(
    forget_path: str,
    retain_path: str,
    lengths_of: Callable[[Sequence[str]], list[int]] | None,
    max_length: int,
) -> Iterator[Finding]:
    """Both splits: there, disjoint, balanced, of similar length, without repeats.

    `lengths_of` counts tokens; without it words are counted and nothing is said on `max_length`.
    """
    splits = []
    for path, name in ((forget_path, "forget"), (retain_path, "retain")):
        try:
            splits.append(texts.read_split(path, name))
        except BadInput as error:
            says = str(error).replace(f"--{name}-text", f"--{name}-data")
            yield Finding("error", f"{name} texts", says)
    for split in splits:
        yield from _check_split(split)
    if len(splits) < 2:
        return
    forget, retain = splits
    yield from _check_overlap(forget, retain)
    larger, smaller = sorted((len(forget.texts), len(retain.texts)), reverse=True)
    sizes = f"{len(forget.texts)} forget and {len(retain.texts)} retain samples"
    if larger > UNEVEN_SIZES * smaller:
        yield Finding("warning", "balance", f"{sizes}: the smaller is cycled; even them out")
    else:
        yield Finding("ok", "balance", sizes)
    yield from _check_lengths(splits, lengths_of, max_length)


def _check_lengths(
    splits: Sequence[Split], lengths_of: Callable[[Sequence[str]], list[int]] | None, longest: int
) -> Iterator[Finding]:
    unit = "tokens" if lengths_of else "words"
    count = lengths_of or (lambda lines: [len(line.split()) for line in lines])
    lengths = {split.name: count(split.texts) for split in splits}
    says = ", ".join(f"{n} {median(v):.0f} (longest {max(v)})" for n, v in lengths.items())
    typical = sorted(max(1.0, median(v)) for v in lengths.values())
    if typical[-1] > UNEVEN_LENGTHS * typical[0]:
        yield Finding(
            "warning",
            "lengths",
            f"median {unit}: {says}; a probe may tell the splits by length alone: match them",
        )
    else:
        yield Finding("ok", "lengths", f"median {unit}: {says}")
    cut = Counter({name: sum(n > longest for n in v) for name, v in lengths.items()})
    if lengths_of and cut.total():
        yield Finding(
            "warning", "lengths", f"{cut.total()} samples are cut at {longest} tokens: --max-length"
        )


def check_questions(path: str, forget_path: str, retain_path: str) -> Iterator[Finding]:
    """The questions are readable, and no text states one word for word."""
    from model_diffs.data.questions import load_questions

    try:
        questions = load_questions(path)
        told = {
            normalised(line)
            for file, name in ((forget_path, "forget"), (retain_path, "retain"))
            for line in texts.read_split(file, name).texts
        }
    except BadInput as error:
        yield Finding("error", "questions", str(error))
        return
    same = [q.id for q in questions if normalised(q.sentences()[q.answer]) in told]
    if same:
        yield Finding(
            "warning",
            "questions",
            f"{len(same)} answers stand word for word in the texts (such as {same[0]}): accuracy "
            "would tell the sentence, not the fact; reword them",
        )
    else:
        domains = Counter(question.domain for question in questions)
        says = ", ".join(f"{count} {domain}" for domain, count in domains.items())
        yield Finding("ok", "questions", f"{says}; none stands word for word in the texts")
