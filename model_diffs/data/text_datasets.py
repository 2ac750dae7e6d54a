"""One list of texts from whatever a user names: a text file, a folder, a data set of the hub.

    read_dataset("data/forget.txt")                                  one sample per line
    read_dataset("Salesforce/wikitext:wikitext-2-raw-v1", 500, 42)   500 of them, drawn by seed 42

Of a data set, its `train` split is read, and of a row the first of the fields `text`, `question`
and `prompt` that it has. Headings and fragments of WikiText are left out.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.data import sample_sources, texts
from model_diffs.data.sample_sources import Samples
from model_diffs.data.texts import Split
from model_diffs.models.files import hub_errors

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
"""The default data set."""
_HUB_NAME = re.compile(r"^(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?::(?P<config>[\w][\w.+-]*))?$")


def read_dataset(name: str, max_samples: int = 0, seed: int | None = None) -> Split:
    """Texts of a text, .json or .jsonl file, of a folder laid out as on the hub, or of the hub.

    `max_samples` of them (0 = all) are drawn with `seed`, in their order, or are the first ones
    without. A folder or hub name may end in `:config`. All lines of a text file are kept; from
    other sources a text becomes one line and repeated ones are read once. Raises BadInput for what
    is missing, empty, unreadable or out of reach.
    """
    path = Path(name).expanduser()
    suffix, folder, hub = path.suffix.lower(), _folder(name), _HUB_NAME.match(name)
    if suffix in (".json", ".jsonl") and not path.is_dir():
        try:
            found = sample_sources.choose(sample_sources.from_file(path, None), 0, 0).texts
        except BadInput as error:
            # What follows the semicolon names an option of create_datasets.py.
            raise BadInput(str(error).partition(";")[0]) from error
    elif folder:
        found = _from_rows(*folder)
    elif hub and not path.is_file() and suffix not in (".txt", ".text"):
        found = _from_rows(hub["repo"], hub["config"])
    else:
        found = texts.read_split(path, "dataset", flag="--dataset").texts
    if seed is None:
        return Split("dataset", path, found[: max_samples or None])
    return Split("dataset", path, sample_sources.drawn(found, max_samples, seed))


def files_of(split: Split) -> list[Path]:
    """The files on this disk that a split was read from; none for a data set of the hub."""
    if split.path.is_dir():
        return sorted(file for file in split.path.rglob("*") if file.is_file())
    return [split.path] if split.path.is_file() else []


def _folder(name: str) -> tuple[str, str | None] | None:
    """Folder and configuration, for a name `folder` or `folder:config`."""
    folder, _, config = name.rpartition(":")
    for candidate, its_config in ((name, None), (folder, config)):
        if candidate and Path(candidate).expanduser().is_dir():
            return str(Path(candidate).expanduser()), its_config
    return None


def _from_rows(source: str, config: str | None) -> list[str]:
    """Texts of a data set in a folder or on the hub."""
    found = []
    for number, row in enumerate(_rows(source, config)):
        text = sample_sources.text_in(row)
        if text is None:
            fields, names = " or ".join(sample_sources.TEXT_FIELDS), ", ".join(sorted(row))
            raise BadInput(f"{source}, row {number}: no text in {fields}; its fields are {names}")
        found.append(sample_sources.article_text({"text": text}))
    wikitext = "wikitext" in f"{Path(source).name} {config}".lower()
    least = sample_sources.LEAST_CHARACTERS if wikitext else 0
    samples = Samples(found, {"repository": source})
    return sample_sources.choose(samples, 0, 0, least_characters=least).texts


def _rows(source: str, config: str | None) -> Iterator[Mapping[str, Any]]:
    """Rows of a data set's train split. A folder is read in place, without a copy in a cache."""
    import datasets

    with hub_errors(source, "give a text file with one sample per line"):
        try:
            yield from datasets.load_dataset(
                source,
                config,
                split="train",
                streaming=Path(source).is_dir(),
                token=os.environ.get("HF_TOKEN") or False,
            )
        except (datasets.exceptions.DatasetsError, ValueError) as error:
            # No such data set or no access to it; no data files; a configuration or split that it
            # does not have.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInput(f"{source}: {reason}") from error
