"""Where forget and retain samples come from: data sets of the hub, or local text and JSON files.

The only thing that needs a network is `snapshot`, which puts the files of a data set on this disk;
what is there already is not fetched again.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput

# Shorter lines of WikiText are headings and fragments.
LEAST_CHARACTERS = 50
_TEXT_FIELDS = ("text", "question", "prompt")


class HubSource(NamedTuple):
    """One configuration of a data set on the hub, in parquet files `<config>/<split>-*.parquet`."""

    repository: str
    config: str
    split: str
    revision: str | None
    """A commit, tag or branch; None: the newest."""


class Samples(NamedTuple):
    """What a source gave."""

    texts: list[str]
    """One line each."""
    facts: dict[str, Any]
    """For datasets.json: where from, which state of it, how many were left out and why."""


WMDP = HubSource("cais/wmdp", "wmdp-bio", "test", None)
WIKITEXT = HubSource("Salesforce/wikitext", "wikitext-2-raw-v1", "train", None)


# ── hub ───────────────────────────────────────────────────────────────────────────────────────────


def snapshot(source: HubSource) -> Path:
    """Folder `…/snapshots/<commit>` with the source's parquet files; the one call to the network.

    Raises BadInput where the hub has no such data set, does not give it, or cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    name = f"{source.repository} ({source.config})"
    try:
        found = snapshot_download(
            source.repository,
            repo_type="dataset",
            revision=source.revision,
            token=os.environ.get("HF_TOKEN") or False,
            allow_patterns=[f"{source.config}/{source.split}-*.parquet"],
        )
    except errors.GatedRepoError as error:
        raise BadInput(
            f"{name} is gated: accept its terms on the hub and set HF_TOKEN in .env"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"{name}: the hub has no revision {source.revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(f"{name}: no such, or a private, data set on the hub") from error
    except (OSError, errors.LocalEntryNotFoundError) as error:
        raise BadInput(_unreachable(name)) from error
    except Exception as error:
        # The hub's client lets its own transport's errors through.
        if type(error).__module__.split(".")[0] in ("httpx", "httpcore"):
            raise BadInput(_unreachable(name)) from error
        raise
    return Path(found)


def _unreachable(name: str) -> str:
    return (
        f"{name}: the hub cannot be reached; connect, download it first, or give your own texts "
        "with --forget-source and --retain-source"
    )


def _rows(source: HubSource, folder: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of the source's split, in order, read without a copy in the cache of `datasets`."""
    import datasets

    files = sorted(folder.glob(f"{source.config}/{source.split}-*.parquet"))
    if not files:
        raise BadInput(
            f"{source.repository}: no {source.config}/{source.split}-*.parquet in {folder}; its "
            "layout has changed, give an older --revision or your own texts"
        )
    yield from datasets.load_dataset(
        "parquet", data_files=[str(file) for file in files], split="train", streaming=True
    )


def from_hub(
    source: HubSource,
    text_of: Callable[[Mapping[str, Any]], str],
    fetch: Callable[[HubSource], Path] = snapshot,
) -> Samples:
    """All texts of a source of the hub. Raises BadInput where a row lacks what `text_of` needs."""
    folder = fetch(source)
    try:
        texts = [text_of(row) for row in _rows(source, folder)]
    except KeyError as error:
        raise BadInput(
            f"{source.repository}: its rows have no field {error}; give an older --revision"
        ) from error
    facts = {**source._asdict(), "revision": folder.name}
    return Samples(texts, facts)


def question_text(row: Mapping[str, Any]) -> str:
    """A WMDP question as it is asked, without its choices."""
    return str(row["question"])


def answered_question(row: Mapping[str, Any]) -> str:
    """A WMDP question with its right choice behind it."""
    return f"{row['question']} {row['choices'][row['answer']]}"


def article_text(row: Mapping[str, Any]) -> str:
    """A line of WikiText; empty where it is a heading (` = Title = `)."""
    text = str(row["text"]).strip()
    return "" if text.startswith("=") and text.endswith("=") else text


# ── local files ───────────────────────────────────────────────────────────────────────────────────


def _text_of_object(value: Any, field: str | None, place: str) -> str:
    if isinstance(value, str):
        return value
    fields = [field] if field else _TEXT_FIELDS
    if isinstance(value, dict):
        for name in fields:
            if isinstance(value.get(name), str):
                return value[name]
    raise BadInput(
        f"{place}: neither a text nor an object with a text in {' or '.join(map(repr, fields))}; "
        "name the field with --text-field"
    )


def _json_values(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """Values and where they stand: the lines of JSONL, the items of a JSON list."""
    if path.suffix.lower() == ".json":
        try:
            whole = json.loads(content)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}: not JSON ({error.msg}, line {error.lineno})") from error
        if not isinstance(whole, list):
            raise BadInput(f"{path}: a JSON list is expected, of texts or objects")
        yield from ((f"{path}, item {i}", value) for i, value in enumerate(whole, start=1))
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{path}, line {number}: not JSON ({error.msg})") from error


def from_file(path: Path, field: str | None) -> Samples:
    """All texts of a local file: .json a list, .jsonl one value per line, else one text per line.

    Raises BadInput for a file that is missing, not UTF-8, or not as described.
    """
    try:
        raw = path.read_bytes()
        content = raw.decode()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput(
            f"{path}: no such file; check --forget-source and --retain-source"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; convert it") from error
    if path.suffix.lower() in (".json", ".jsonl"):
        values = list(_json_values(path, content))
        texts = [_text_of_object(value, field, place) for place, value in values]
    else:
        texts = content.split("\n")
    # Not the path: it belongs to a machine. The hash says which file it was.
    return Samples(texts, {"file": path.name, "sha256_of_file": hashlib.sha256(raw).hexdigest()})


# ── choosing ──────────────────────────────────────────────────────────────────────────────────────


def one_line(text: str) -> str:
    """A text with every kind of line break, and the blanks around it, made one space."""
    return " ".join(text.split())


def choose(
    samples: Samples,
    count: int,
    seed: int,
    taken: Iterable[str] = (),
    least_characters: int = 0,
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
        raise BadInput(f"{_name(samples)}: no text is left to choose from")
    chosen = left
    if count and count < len(left):
        rows = sorted(random.Random(seed).sample(range(len(left)), count))
        chosen = [left[row] for row in rows]
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


def _name(samples: Samples) -> str:
    return str(samples.facts.get("repository") or samples.facts.get("file"))
