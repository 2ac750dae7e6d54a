"""Where the texts of a study come from: data sets of the hub, local files; and a choice of them.

`create_datasets.py` writes what is chosen as files with one text per line.
"""

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import json_lines, json_value, read_text
from model_diffs.models.files import hub_errors

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
"""The default data set."""
# Shorter lines of WikiText are headings and fragments.
LEAST_CHARACTERS = 50
TEXT_FIELDS = ("text", "question", "prompt")


class Samples(NamedTuple):
    """Texts of a source, and for datasets.json: which source, what was left out and why."""

    texts: list[str]
    facts: dict[str, Any]


# ── hub ───────────────────────────────────────────────────────────────────────────────────────────


def from_hub(
    repository: str,
    config: str,
    split: str,
    revision: str | None,
    text_of: Callable[[Mapping[str, Any]], str],
) -> Samples:
    """All texts of a data set on the hub with parquet files `<config>/<split>-*.parquet`, in order.

    `revision`: a commit, tag or branch; None: the newest. What is not on this disk is downloaded.
    Raises BadInput where the hub does not give it or a row lacks what `text_of` needs.
    """
    import datasets
    from huggingface_hub import snapshot_download

    pattern = f"{config}/{split}-*.parquet"
    instead = "give your own texts with --forget-source and --retain-source"
    with hub_errors(f"{repository} ({config})", instead):
        folder = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            token=os.environ.get("HF_TOKEN") or False,
            allow_patterns=[pattern],
        )
    files = sorted(str(file) for file in Path(folder).glob(pattern))
    if not files:
        raise BadInput(
            f"{repository}: no {pattern} in {folder}; its layout has changed, give an older "
            "revision or your own texts"
        )
    # Streaming makes no copy in the cache of `datasets`.
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    try:
        texts = [text_of(row) for row in rows]
    except KeyError as error:
        raise BadInput(
            f"{repository}: its rows have no field {error}; give an older revision"
        ) from error
    names = {"repository": repository, "config": config, "split": split}
    return Samples(texts, {**names, "revision": Path(folder).name})


def question_text(row: Mapping[str, Any], with_answer: bool = False) -> str:
    """A WMDP question without its choices, or followed by the correct one."""
    return f"{row['question']} {row['choices'][row['answer']]}" if with_answer else row["question"]


def article_text(row: Mapping[str, Any]) -> str:
    """A line of WikiText; empty where it is a heading (` = Title = `)."""
    text = str(row["text"]).strip()
    return "" if text.startswith("=") and text.endswith("=") else text


def text_in(row: Any, fields: Sequence[str] = TEXT_FIELDS) -> str | None:
    """The first of the fields that is a text; None where none is."""
    values = [row.get(name) for name in fields] if isinstance(row, Mapping) else []
    return next((value for value in values if isinstance(value, str)), None)


# ── local files ───────────────────────────────────────────────────────────────────────────────────


def json_values(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """Place (for messages) and value of each item of a .json list, or each line of .jsonl."""
    if path.suffix.lower() == ".jsonl":
        yield from json_lines(path, content)
        return
    items = json_value(str(path), content)
    if not isinstance(items, list):
        raise BadInput(f"{path}: a JSON list is expected, of texts or objects")
    for number, item in enumerate(items, start=1):
        yield f"{path}, item {number}", item


def _json_texts(path: Path, content: str, fields: Sequence[str]) -> Iterator[str]:
    """Texts of a .json list, or of the lines of .jsonl: strings, or the first field that is one."""
    for place, value in json_values(path, content):
        text = value if isinstance(value, str) else text_in(value, fields)
        if text is None:
            raise BadInput(
                f"{place}: neither a text nor an object with a text in "
                f"{' or '.join(map(repr, fields))}; name the field with --text-field"
            )
        yield text


def from_file(path: Path, field: str | None) -> Samples:
    """All texts of a local file: .json a list, .jsonl one value per line, else one text per line.

    Raises BadInput for a file that is missing, not UTF-8, or not as described.
    """
    content = read_text(path, "file; check --forget-source and --retain-source")
    if path.suffix.lower() in (".json", ".jsonl"):
        texts = list(_json_texts(path, content, [field] if field else TEXT_FIELDS))
    else:
        texts = content.split("\n")
    # Not the path: it belongs to a machine. The hash says which file it was.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Samples(texts, {"file": path.name, "sha256_of_file": digest})


# ── choosing ──────────────────────────────────────────────────────────────────────────────────────


def one_line(text: str) -> str:
    """The text with every run of whitespace, line breaks included, made one space."""
    return " ".join(text.split())


def drawn(texts: list[str], count: int, seed: int) -> list[str]:
    """`count` of the texts drawn with a seed, in their order; all of them for 0 or too few."""
    if not 0 < count < len(texts):
        return texts
    return [texts[row] for row in sorted(random.Random(seed).sample(range(len(texts)), count))]


def choose(
    samples: Samples, count: int, seed: int, taken: Iterable[str] = (), least_characters: int = 0
) -> Samples:
    """A seeded choice of `count` different lines (0 = all), in the order of the source.

    Lines in `taken` and those shorter than `least_characters` are left out. With fewer than `count`
    left, all of them. Raises BadInput where none is left.
    """
    lines = [line for line in map(one_line, samples.texts) if line]
    long = [line for line in lines if len(line) >= least_characters]
    different = list(dict.fromkeys(long))
    others = set(taken)
    left = [line for line in different if line not in others]
    if not left:
        name = samples.facts.get("repository") or samples.facts.get("file")
        raise BadInput(f"{name}: no text is left to choose from")
    chosen = drawn(left, count, seed)
    facts = {
        **samples.facts,
        "texts_in_source": len(lines),
        "left_out_short": len(lines) - len(long),
        "left_out_repeated": len(long) - len(different),
        "left_out_in_other_split": len(different) - len(left),
        "samples": len(chosen),
        "sha256": hashlib.sha256("\n".join(chosen).encode()).hexdigest(),
    }
    return Samples(chosen, facts)
