"""Texts from files, folders and names: what is read, what is chosen, what is refused."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny_models

from model_diffs.core.errors import BadInput
from model_diffs.data import text_datasets
from model_diffs.data.text_datasets import chat_of, read_dataset

LONG = "A sentence that is certainly longer than fifty characters, number"


def write(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_text_file_gives_its_lines_in_order(tmp_path: Path) -> None:
    name = write(tmp_path / "a.txt", ["one", "", " two ", "two", "three"])
    assert read_dataset(name).texts == ["one", "two", "two", "three"]
    assert text_datasets.files_of(read_dataset(name)) == [tmp_path / "a.txt"]


def test_seeded_sample_is_repeatable_distinct_and_in_file_order(tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(100)]
    name = write(tmp_path / "a.txt", lines)
    drawn = read_dataset(name, 20, seed=1)
    assert drawn == read_dataset(name, 20, seed=1)
    assert drawn.texts != read_dataset(name, 20, seed=2).texts != lines[:20]
    assert drawn.texts == [line for line in lines if line in set(drawn.texts)]
    assert len(set(drawn.texts)) == 20
    assert read_dataset(name, 500, seed=1).texts == lines


def test_records_keep_their_line_breaks_and_repeated_ones_are_counted(tmp_path: Path) -> None:
    rows = [{"question": "Who?"}, {"text": " a\nb "}, {"text": "a b"}, {"prompt": "Go"}, "Who?"]
    name = write(tmp_path / "a.jsonl", [json.dumps(row) for row in rows])
    found = read_dataset(name)
    assert found.texts == ["Who?", "a\nb", "a b", "Go", "Who?"]
    assert found.repeated == found.identity()["repeated"] == 1
    assert read_dataset(name, drop_repeated=True).texts == ["Who?", "a\nb", "a b", "Go"]


def test_conversations_are_rendered_by_the_chat_template(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hi\nthere"},
                {"role": "assistant", "content": "Yes"},
            ]
        },
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me"}]},
    ]  # fmt: skip
    name = write(tmp_path / "a.jsonl", [json.dumps(row) for row in rows])
    tokenizer = tiny_models.tokenizer("llama")
    with pytest.raises(BadInput, match="no chat template"):
        read_dataset(name, chat=chat_of(tokenizer))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    )
    texts = read_dataset(name, chat=chat_of(tokenizer)).texts
    # The tokenizer puts a BOS in front itself, so the template's is left out.
    assert texts == ["[user] Hi\nthere\n[assistant] Yes", "[user] Who?\n[assistant] Me"]
    tokenizer.chat_template = "{{ raise_exception('only users speak') }}"
    with pytest.raises(BadInput, match="only users speak"):
        read_dataset(name, chat=chat_of(tokenizer))
    bad = write(tmp_path / "b.jsonl", ['{"messages": ["Hi"]}'])
    with pytest.raises(BadInput, match="line 1: messages without role and content"):
        read_dataset(bad)


def test_folder_with_the_layout_of_the_hub_is_read(tmp_path: Path) -> None:
    parquet(tmp_path / "plain" / "data", [{"text": "short"}, {"text": "other"}])
    assert read_dataset(str(tmp_path / "plain")).texts == ["short", "other"]
    lines = [f"{LONG} {i}." for i in range(5)]
    rows = [{"text": text} for text in ["", " = Title = ", "fragment", *lines]]
    wikitext = tmp_path / "wikitext"
    parquet(wikitext / "wikitext-2-raw-v1", rows)
    (wikitext / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n  - split: train\n"
        "    path: wikitext-2-raw-v1/train-*\n---\n"
    )
    found = read_dataset(f"{wikitext}:wikitext-2-raw-v1")
    assert found.texts == lines
    drawn = sorted(random.Random(3).sample(range(5), 2))
    assert read_dataset(f"{wikitext}:wikitext-2-raw-v1", 2, seed=3).texts == [
        lines[i] for i in drawn
    ]


def test_hub_name_is_split_into_repository_and_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def load(source: str, config: str | None, **options: Any) -> list[dict[str, str]]:
        asked.append((source, config, options["split"]))
        return [{"text": " = Title = "}, {"text": LONG}, {"text": "fragment"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    wikitext = read_dataset("Salesforce/wikitext:wikitext-2-raw-v1")
    assert wikitext.texts == [LONG]
    assert text_datasets.files_of(wikitext) == []
    assert read_dataset("NeelNanda/pile-10k").texts == ["= Title =", LONG, "fragment"]
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
        ("NeelNanda/pile-10k", None, "train"),
    ]


def test_unreachable_hub_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(BadInput, match="the hub cannot be reached"):
        read_dataset("org/name")


def test_unreadable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such text file"):
        read_dataset(str(tmp_path / "missing.txt"))
    with pytest.raises(BadInput, match="no such text file"):
        read_dataset("data/missing.txt")
    with pytest.raises(BadInput, match="no such file"):
        read_dataset("data/missing.jsonl")
    with pytest.raises(BadInput, match="no text in it"):
        read_dataset(write(tmp_path / "empty.txt", ["", " "]))
    with pytest.raises(BadInput, match="line 1: no text in") as refused:
        read_dataset(write(tmp_path / "a.jsonl", ['{"number": 1}']))
    assert "--" not in str(refused.value)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadInput, match="nothing"):
        read_dataset(str(tmp_path / "nothing"))
    parquet(tmp_path / "numbers", [{"number": 1}])
    with pytest.raises(BadInput, match="its fields are number"):
        read_dataset(str(tmp_path / "numbers"))
