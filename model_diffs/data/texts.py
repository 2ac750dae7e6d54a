"""Splits of texts: read, checked, tokenised, batched by length."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput


class Split(NamedTuple):
    """Texts of one kind, in the order of their file."""

    name: str
    """`forget` or `retain`."""
    path: Path
    texts: list[str]
    sha256: str
    """Of the texts that are used, joined by newlines."""

    def identity(self) -> dict[str, Any]:
        """What run.json says of a split."""
        return {"path": str(self.path), "texts": len(self.texts), "sha256": self.sha256}


def read_split(path: str | Path, name: str, max_samples: int = 0, flag: str = "") -> Split:
    """Read one sample per line, empty lines dropped; the first `max_samples` of them (0 = all).

    Raises BadInput for a missing, empty or undecodable file; `flag` is the option to name in it,
    `--<name>-text` by default.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput(
            f"{path}: no such text file; make it or name another with {flag or f'--{name}-text'}"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; convert it") from error
    # Not splitlines(): form feeds and other separators may stand inside a sample.
    texts = [line.strip() for line in content.split("\n")]
    texts = [line for line in texts if line]
    if not texts:
        raise BadInput(f"{path}: no text in it; one sample per line is expected")
    if max_samples:
        texts = texts[:max_samples]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return Split(name, path, texts, digest)


def check_disjoint(forget: Split, retain: Split) -> None:
    """Raise BadInput where the splits share a line: the contrast between them would be false."""
    shared = set(forget.texts) & set(retain.texts)
    if shared:
        example = min(shared)[:60]
        raise BadInput(
            f"{forget.path} and {retain.path} share {len(shared)} lines (such as {example!r}): "
            "remove them from one of the two"
        )


def read_splits(forget_text: str, retain_text: str, max_samples: int) -> list[Split]:
    """Both splits, disjoint, forget first."""
    forget = read_split(forget_text, "forget", max_samples)
    retain = read_split(retain_text, "retain", max_samples)
    check_disjoint(forget, retain)
    return [forget, retain]


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text as the tokenizer makes them, special tokens included, cut to length.

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
    """Indices in batches of similar length, longest first, so that little is padding.

    Longest first: what does not fit into memory fails at once, not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
