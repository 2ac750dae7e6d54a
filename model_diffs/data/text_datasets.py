"""Texts from whatever a user names: a text or JSON file, a folder, a data set of the hub.

    read_dataset("data/forget.txt")                                  one sample per line
    read_dataset("Salesforce/wikitext:wikitext-2-raw-v1", 500, 42)   500 of them, drawn by seed 42

Of a data set, its `train` split is read row by row, and of a row the first of the fields `text`,
`question` and `prompt` that it has, or its `messages` (`conversations`) through a chat template.
Headings and fragments of WikiText are left out.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.data.text_sources import (
    LEAST_CHARACTERS,
    TEXT_FIELDS,
    article_text,
    drawn,
    json_values,
    text_in,
)
from model_diffs.data.texts import Split, read_split, read_text
from model_diffs.models.files import hub_errors

_HUB_NAME = re.compile(r"^(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?::(?P<config>[\w][\w.+-]*))?$")
MESSAGE_FIELDS = ("messages", "conversations")
# Of a data set of the hub, samples are drawn from the first this many times as many texts.
POOL = 10
Chat = Callable[[list[dict[str, str]]], str]
"""A conversation's messages, role and content each, as the text that its model reads."""


def chat_of(tokenizer: Any) -> Chat:
    """Conversations through a tokenizer's template, without the BOS that it puts in front itself.

    Raises BadInput where it has none, or one that does not take the conversation.
    """

    def render(turns: list[dict[str, str]]) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise BadInput(
                "the texts are conversations and the tokenizer has no chat template: use that of "
                "the instruction model, or texts"
            )
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception as error:  # a template can raise any
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInput(f"the chat template does not take a conversation: {first}") from error
        ids = tokenizer("a")["input_ids"]
        adds = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
        return text.removeprefix(tokenizer.bos_token) if adds else text

    return render


def read_dataset(
    name: str,
    max_samples: int = 0,
    seed: int = 0,
    chat: Chat | None = None,
    drop_repeated: bool = False,
) -> Split:
    """Texts of a text, .json or .jsonl file, of a folder laid out as on the hub, or of the hub.

    `max_samples` of them (0 = all) are drawn with `seed`, in their order: from all of a file or
    folder, from the first POOL times as many of a data set of the hub, whose other rows are not
    read. A folder or hub name may end in `:config`. A line of a text file is a text; of other
    sources a record is one, line breaks included. Messages become texts by `chat`. Repeated texts
    are counted, and read once with `drop_repeated`. Raises BadInput for what is missing, empty,
    unreadable or out of reach.
    """
    path = Path(name).expanduser()
    suffix, folder, hub = path.suffix.lower(), _folder(name), _HUB_NAME.match(name)
    if suffix in (".json", ".jsonl") and not path.is_dir():
        texts = _file_texts(path, chat)
    elif folder:
        texts = _row_texts(*folder, chat)
    elif hub and not path.is_file() and suffix not in (".txt", ".text"):
        every = _row_texts(hub["repo"], hub["config"], chat)
        texts = itertools.islice(every, POOL * max_samples or None)
    else:
        texts = iter(read_split(path, "dataset", flag="--dataset").texts)
    found = list(texts)
    if not found:
        raise BadInput(f"{name}: no text is left to choose from")
    different = list(dict.fromkeys(found))
    chosen = drawn(different if drop_repeated else found, max_samples, seed)
    return Split("dataset", path, chosen, len(found) - len(different))


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


def _file_texts(path: Path, chat: Chat | None) -> Iterator[str]:
    try:
        values = list(json_values(path, read_text(path, "file")))
    except BadInput as error:
        # What follows the semicolon names an option of create_datasets.py.
        raise BadInput(str(error).partition(";")[0]) from error
    for place, value in values:
        text = value if isinstance(value, str) else _text_of(value, place, chat)
        if text.strip():
            yield text.strip()


def _row_texts(source: str, config: str | None, chat: Chat | None) -> Iterator[str]:
    """Texts of a data set in a folder or on the hub, row by row: what is not asked for is not
    read, and no copy is made."""
    import datasets

    wikitext = "wikitext" in f"{Path(source).name} {config}".lower()
    with hub_errors(source, "give a text file with one sample per line"):
        try:
            rows = datasets.load_dataset(
                source,
                config,
                split="train",
                streaming=True,
                token=os.environ.get("HF_TOKEN") or False,
            )
            for number, row in enumerate(rows):
                text = _text_of(row, f"{source}, row {number}", chat)
                text = article_text({"text": text}) if wikitext else text.strip()
                if len(text) >= (LEAST_CHARACTERS if wikitext else 1):
                    yield text
        except (datasets.exceptions.DatasetsError, ValueError) as error:
            # No such data set or no access to it; no data files; a configuration or split that it
            # does not have.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInput(f"{source}: {reason}") from error


def _text_of(row: Any, place: str, chat: Chat | None) -> str:
    text = text_in(row)
    if text is None and isinstance(row, Mapping):
        messages = next((row[name] for name in MESSAGE_FIELDS if row.get(name)), None)
        if messages is not None:
            return _chat_text(messages, place, chat)
    if text is None:
        fields = " or ".join((*TEXT_FIELDS, *MESSAGE_FIELDS))
        names = ", ".join(sorted(row)) if isinstance(row, Mapping) else type(row).__name__
        raise BadInput(f"{place}: no text in {fields}; its fields are {names}")
    return text


def _chat_text(messages: Any, place: str, chat: Chat | None) -> str:
    """A conversation as its model reads it. ShareGPT's `from` and `value` are taken too."""
    roles = {"human": "user", "gpt": "assistant"}
    try:
        turns = [
            {
                "role": roles.get(
                    turn.get("role") or turn["from"], turn.get("role") or turn["from"]
                ),
                "content": turn["content"] if "content" in turn else turn["value"],
            }
            for turn in messages
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{place}: messages without role and content") from error
    if chat is None:
        raise BadInput(f"{place} is a conversation, which needs a tokenizer with a chat template")
    return chat(turns)
