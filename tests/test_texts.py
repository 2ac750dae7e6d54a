"""Splits: read in order, checked, batched by length."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import length_batches, read_split, read_splits


def test_samples_are_lines_in_order_without_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "forget.txt"
    path.write_text("two\n\n  one \n   \nthree\x0cstill three\u2028and still\n")
    assert read_split(path, "forget").texts == ["two", "one", "three\x0cstill three\u2028and still"]
    assert read_split(path, "forget", 2).texts == ["two", "one"]


def test_hash_covers_only_the_texts_that_are_used(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo\nthree")
    (tmp_path / "b").write_text("one\n\ntwo\n")
    a, b = (read_split(tmp_path / name, "forget", 2) for name in "ab")
    assert a.sha256 == b.sha256 != read_split(tmp_path / "a", "forget").sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such text file"), (b"\n \n", "no text"), (b"caf\xe9", "not UTF-8")],
)
def test_refuses_missing_empty_and_undecodable_files(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_split(tmp_path / "t.txt", "forget")


def test_refuses_splits_that_share_a_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\ntwo")
    (tmp_path / "r").write_text("three\ntwo")
    with pytest.raises(BadInput, match="share 1 lines"):
        read_splits(str(tmp_path / "f"), str(tmp_path / "r"), 0)


@settings(deadline=None)  # other work may slow an example down
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9))
def test_batches_hold_every_text_once_longest_first(lengths: list[int], size: int) -> None:
    batches = length_batches(lengths, size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    shortest = [min(lengths[i] for i in batch) for batch in batches]
    # Sorted: no text waits in a later batch that is longer than one before it.
    assert all(low >= high for low, high in zip(shortest, longest[1:], strict=False))
