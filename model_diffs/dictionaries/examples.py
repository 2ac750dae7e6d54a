"""The page of examples: the latents that changed most, and the texts in which they are active."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model_diffs.dictionaries.diffing import Comparison
from model_diffs.dictionaries.reading import Reading
from model_diffs.dictionaries.sums import Contexts

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = "examples.html.j2"
# Tokens shown on either side of the one where a latent is most active.
AROUND = 24


def contexts(
    top: Contexts, latent: int, texts: Reading, tokenizer: Any, count: int
) -> list[tuple[Any, ...]]:
    """Up to `count` texts in which a latent is most active: highest coefficient, data set, and text
    before, at and after that token.

    Of texts that are equal up to that token, where a causal model is in the same state, only one.
    """
    found: dict[tuple[int, ...], tuple[Any, ...]] = {}
    for value, row, at in zip(*(part[:, latent].tolist() for part in top), strict=True):
        if value == -np.inf or len(found) == count:
            break
        ids = texts.tokens.ids[row]
        pieces = (ids[max(0, at - AROUND) : at], ids[at : at + 1], ids[at + 1 : at + 1 + AROUND])
        shown = map(tokenizer.decode, pieces)
        found.setdefault(tuple(ids[: at + 1]), (value, texts.names[texts.sources[row]], *shown))
    return list(found.values())


def page(
    found: Comparison,
    table: "pd.DataFrame",
    texts: Reading,
    tokenizer: Any,
    title: str,
    names: tuple[str, str],
    notes: list[str],
    shown: int,
    count: int,
) -> str:
    """The page as HTML; everything that comes from texts or models is escaped.

    `table` is that of `tables.latents`. `shown` latents are listed in each direction, with `count`
    texts each of the model in which they are more active.
    """
    fell, rose = table[table["difference"] < 0][::-1], table[table["difference"] > 0]
    parts = []
    for word, name, side, ranked in (
        ("Less", names[0], found.base, fell),
        ("More", names[1], found.changed, rose),
    ):
        rows = ranked.head(shown).to_dict("records")
        latents = [
            (row, contexts(side.top, row["latent"], texts, tokenizer, count)) for row in rows
        ]
        parts.append((f"{word} active in {names[1]}", name, latents))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(TEMPLATE).render(
        title=title, names=names, fits=found.fits, notes=notes, parts=parts
    )
