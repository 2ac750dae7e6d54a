"""One list of texts from whatever a user names: a text file, a folder, a data set of the hub.

    read_dataset("data/forget.txt")                                  one sample per line
    read_dataset("Salesforce/wikitext:wikitext-2-raw-v1", 500, 42)   500 of them, drawn by seed 42

Of a data set, its `train` split is read, and of a row the first of the fields `text`, `question`
and `prompt` that it has. Of WikiText, headings and fragments are left out.
"""

import hashlib
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.data import sample_sources, texts
from model_diffs.data.sample_sources import Samples
from model_diffs.data.texts import Split

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
"""What is read where nobody says otherwise."""
FIELDS = ("text", "question", "prompt")
SPLIT = "train"
_JSON = (".json", ".jsonl")
_HUB_NAME = re.compile(r"^(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?::(?P<config>[\w][\w.+-]*))?$")


def read_dataset(name: str, max_samples: int = 0, seed: int | None = None) -> Split:
    """Texts of a text, .json or .jsonl file, of a folder laid out as on the hub, or of the hub.

    With a seed, `max_samples` of them (0 = all) are drawn and stay in their order; without one they
    are the first. A folder or hub name may end in `:config`. Lines of a text file are all kept;
    from other sources a text becomes one line and repeated ones enter once.
    Raises BadInput for what is missing, empty, unreadable or out of reach.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() in _JSON and not path.is_dir():
        found = _unique(_from_json(path), 0)
    elif _names_file(name, path):
        found = texts.read_split(path, "dataset", flag="--dataset").texts
    else:
        folder, config = _place(name)
        rows = _rows(folder, config)
        wikitext = "wikitext" in f"{Path(folder).name} {config}".lower()
        least = sample_sources.LEAST_CHARACTERS if wikitext else 0
        found = _unique(Samples(list(_texts_of(rows, name)), {"repository": name}), least)
    if max_samples and max_samples < len(found):
        if seed is None:
            found = found[:max_samples]
        else:
            drawn = sorted(random.Random(seed).sample(range(len(found)), max_samples))
            found = [found[row] for row in drawn]
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    return Split("dataset", path, found, digest)


def files_of(split: Split) -> list[Path]:
    """The files on this disk that a split was read from, for the record; none for the hub's."""
    if split.path.is_dir():
        return sorted(file for file in split.path.rglob("*") if file.is_file())
    return [split.path] if split.path.is_file() else []


# ── what the name means ───────────────────────────────────────────────────────────────────────────


def _names_file(name: str, path: Path) -> bool:
    """Whether this is a file, there or not, rather than a folder or a name of the hub."""
    if path.is_dir() or _place(name, missing_ok=True) is not None:
        return False
    return path.is_file() or not _HUB_NAME.match(name) or path.suffix.lower() in (".txt", ".text")


def _place(name: str, missing_ok: bool = False) -> Any:
    """Folder or hub name, and configuration or None."""
    folder, _, config = name.rpartition(":")
    for candidate, its_config in ((name, None), (folder, config)):
        if candidate and Path(candidate).expanduser().is_dir():
            return str(Path(candidate).expanduser()), its_config
    if missing_ok:
        return None
    named = _HUB_NAME.match(name)
    if named is None:
        raise BadInput(f"{name!r} is neither a file, a folder, nor a data set org/name[:config]")
    return named["repo"], named["config"]


def _from_json(path: Path) -> Samples:
    if not path.is_file():
        raise BadInput(f"{path}: no such file; make it or name another with --dataset")
    try:
        return sample_sources.from_file(path, None)
    except BadInput as error:
        # What follows the semicolon names an option of another script.
        raise BadInput(str(error).partition(";")[0]) from error


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def _rows(source: str, config: str | None) -> Iterator[Mapping[str, Any]]:
    """Rows of a data set's train split. A folder is read in place, without a copy in a cache."""
    import datasets
    from datasets import exceptions

    try:
        yield from datasets.load_dataset(
            source,
            config,
            split=SPLIT,
            streaming=Path(source).is_dir(),
            token=os.environ.get("HF_TOKEN") or False,
        )
    except exceptions.DatasetNotFoundError as error:
        raise BadInput(
            f"{source}: no such file or folder, and no such, a gated or a private data set on the "
            "hub"
        ) from error
    except (exceptions.DataFilesNotFoundError, exceptions.DatasetGenerationError) as error:
        raise BadInput(f"{source}: no readable data files ({_first_line(error)})") from error
    except ValueError as error:  # a wrong or missing configuration, no train split
        raise BadInput(f"{source}: {_first_line(error)}") from error
    except OSError as error:
        raise BadInput(_out_of_reach(source)) from error
    except Exception as error:
        # The hub's client lets its own transport's errors through.
        if type(error).__module__.split(".")[0] in ("httpx", "httpcore", "huggingface_hub"):
            raise BadInput(_out_of_reach(source)) from error
        raise


def _out_of_reach(source: str) -> str:
    return (
        f"{source}: no such file or folder, and the hub cannot be reached; connect, or give a text "
        "file with one sample per line"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _texts_of(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[str]:
    for number, row in enumerate(rows):
        field = next((field for field in FIELDS if isinstance(row.get(field), str)), None)
        if field is None:
            fields = ", ".join(sorted(row))
            raise BadInput(
                f"{name}, row {number}: no text in {' or '.join(FIELDS)}; its fields are {fields}"
            )
        yield sample_sources.article_text({"text": row[field]})


def _unique(samples: Samples, least_characters: int) -> list[str]:
    return sample_sources.choose(samples, 0, 0, least_characters=least_characters).texts
