"""One tokenizer for models whose states are compared, where they need not have the very same."""

from typing import Any

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import encode
from model_diffs.dictionaries.reading import Reading
from model_diffs.models import files, loading

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def has_tokenizer(model: str) -> bool:
    """Whether a model's folder holds a tokenizer."""
    folder = files.resolve(model)
    return any((folder / name).is_file() for name in _FILES)


def check_reads_alike(
    base: str,
    tokenizer: Any,
    model: str,
    texts: Reading,
    max_length: int,
    trust_remote_code: bool = False,
) -> str | None:
    """Raise BadInput where `model` would read other tokens in the texts than the base's tokenizer.

    Returns a sentence where its tokenizer is not the base's and the texts are read alike: it has
    none, or it only added tokens that the texts do not use.
    """
    if not has_tokenizer(model):
        return f"{model} has no tokenizer of its own: texts are read with that of {base}"
    other = loading.load_tokenizer(model, trust_remote_code)
    own, its = tokenizer.get_vocab(), other.get_vocab()
    advice = "pass --tokenizer to say which one reads the texts"
    if any(its.get(token) != number for token, number in own.items()):
        raise BadInput(f"{base} and {model} have different tokenizers: {advice}")
    rows = [texts.texts[row] for row in texts.tokens.documents]
    other.model_max_length = max(other.model_max_length, max_length)
    if encode(other, rows, max_length) != texts.tokens.ids:
        raise BadInput(f"{base} and {model} read the texts as different tokens: {advice}")
    if len(its) == len(own):
        return None
    return (
        f"{model} added {len(its) - len(own)} tokens, none of which the texts use: they are read "
        f"with the tokenizer of {base}"
    )
