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

    @property
    def sha256(self) -> str:
        """Of the texts, joined by newlines."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What run.json records of a split."""
        return {"path": str(self.path), "texts": len(self.texts), "sha256": self.sha256}


def read_text(path: Path, missing: str) -> str:
    """Content of a file. BadInput where it is not UTF-8, or not there: `no such <missing>`."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput(f"{path}: no such {missing}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; convert it") from error


def json_lines(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """Place (for messages) and value of each line. BadInput where one is not JSON."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"not JSON ({error.msg}); one value per line is expected"
                raise BadInput(f"{place}: {problem}") from error


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

    Raises BadInput for a text that gives no token.
    """
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_attention_mask=False
    )["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise BadInput(f"the text {text[:60]!r} has no token in this tokenizer: remove it")
    return encoded


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, so that little is padding; longest first, so that
    running out of memory happens at once, not at the end."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
