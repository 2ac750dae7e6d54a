"""Splits of texts: read, checked, tokenised, batched by length."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput


class Split(NamedTuple):
    """Texts of one kind, in the order of their file."""

    name: str
    """`forget` or `retain`."""
    path: Path
    texts: list[str]
    repeated: int = 0
    """Texts of the source that are there once more."""

    @property
    def sha256(self) -> str:
        """Of the texts, joined by newlines."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What run.json records of a split."""
        said = {"path": str(self.path), "texts": len(self.texts), "sha256": self.sha256}
        return {**said, "repeated": self.repeated} if self.repeated else said


def read_text(path: Path, missing: str) -> str:
    """Content of a file, without a byte order mark.

    BadInput where it is not UTF-8, has a NUL (naming the line), or is not there: `no such
    <missing>`.
    """
    try:
        content = path.read_text(encoding="utf-8").removeprefix("\ufeff")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput(f"{path}: no such {missing}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; convert it") from error
    line = content.partition("\0")[0].count("\n") + 1
    check_characters(f"{path}, line {line}", content)
    return content


def check_characters(place: str, value: Any) -> None:
    """Raise BadInput where a text, or a text in a JSON value, holds what no text can.

    That is a NUL, or half of a surrogate pair, which JSON can spell.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise BadInput(f"{place}: a NUL character; remove it, or name a file of text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadInput(f"{place}: half of a surrogate pair; write the character") from error
    elif isinstance(value, list | dict):
        for part in [*value, *(value.values() if isinstance(value, dict) else ())]:
            check_characters(place, part)


def json_value(place: str, content: str) -> Any:
    """The value that JSON spells. BadInput, naming `place`, where it is none or no text inside."""
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in content else ""
        raise BadInput(f"{place}{line}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # too long a number, too many brackets
        raise BadInput(f"{place}: not JSON that can be read ({error})") from error
    check_characters(place, value)
    return value


def json_lines(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """Place (for messages) and value of each line. BadInput where one is not JSON."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, json_value(place, line)


def read_split(path: str | Path, name: str, max_samples: int = 0, flag: str = "") -> Split:
    """Read one sample per line, without empty lines; the first `max_samples` of them (0 = all).

    Raises BadInput for a missing, empty or undecodable file; the message names the option `flag`,
    by default `--<name>-text`.
    """
    path = Path(path)
    hint = f"text file; make it or name another with {flag or f'--{name}-text'}"
    # Not splitlines(): form feeds and other separators may be part of a sample.
    lines = read_text(path, hint).split("\n")
    texts = [stripped for line in lines if (stripped := line.strip())]
    if not texts:
        raise BadInput(f"{path}: no text in it; one sample per line is expected")
    return Split(name, path, texts[: max_samples or None])


def check_disjoint(forget: Split, retain: Split) -> None:
    """Raise BadInput where the splits share a line, which would blur the contrast between them."""
    shared = set(forget.texts) & set(retain.texts)
    if shared:
        raise BadInput(
            f"{forget.path} and {retain.path} share {len(shared)} lines (such as "
            f"{min(shared)[:60]!r}): remove them from one of the two"
        )


def read_splits(forget_text: str, retain_text: str, max_samples: int) -> list[Split]:
    """Both splits, disjoint, forget first."""
    forget = read_split(forget_text, "forget", max_samples)
    retain = read_split(retain_text, "retain", max_samples)
    check_disjoint(forget, retain)
    return [forget, retain]


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to `max_length`.

    Raises BadInput for a text that gives no token, and for one that is still longer than what the
    model takes (the tokenizer's `model_max_length`): it would fail inside the model, or be read at
    positions that were never trained.
    """
    longest = min(max_length, 2**31)  # what the tokenizer's own integers hold
    encoded = tokenizer(
        list(texts), truncation=True, max_length=longest, return_attention_mask=False
    )["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise BadInput(f"the text {text[:60]!r} has no token in this tokenizer: remove it")
        if len(ids) > tokenizer.model_max_length:
            raise BadInput(
                f"the text {text[:60]!r} has {len(ids)} tokens, the model takes "
                f"{tokenizer.model_max_length}: shorten it, or cut texts with --max-length "
                "(--seq-len)"
            )
    return encoded


def length_batches(lengths: Sequence[int], batch_size: int, most: int = 0) -> list[list[int]]:
    """Indices in batches of similar length, so that little is padding; longest first, so that
    running out of memory happens at once, not at the end. A batch has at most `most` tokens with
    its padding (0: any number), unless it is a single text."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches, start = [], 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        size = min(batch_size, max(1, most // longest)) if most else batch_size
        batches.append(order[start : start + size])
        start += size
    return batches
