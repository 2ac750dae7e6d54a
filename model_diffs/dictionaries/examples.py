"""The page of examples: the latents that changed most, and the texts in which they are active."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model_diffs.dictionaries.diffing import Comparison
from model_diffs.dictionaries.reading import Reading
from model_diffs.dictionaries.sums import Contexts
from model_diffs.dictionaries.tables import Atom

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = "examples.html.j2"
# Tokens shown on either side of the one where a latent is most active.
AROUND = 24


class Context(NamedTuple):
    """One text in which a latent is active, around the token where its coefficient is `value`."""

    value: float
    source: str
    before: str
    token: str
    after: str


def contexts(
    top: Contexts, latent: int, texts: Reading, tokenizer: Any, count: int
) -> list[Context]:
    """Up to `count` texts in which a latent is most active.

    Of texts that are equal up to that token, where a causal model is in the same state, only one.
    """
    found: dict[tuple[int, ...], Context] = {}
    for value, row, position in zip(*(part[:, latent].tolist() for part in top), strict=True):
        if row < 0 or value == -np.inf or len(found) == count:
            break
        ids = texts.tokens.ids[row]
        pieces = (
            ids[max(0, position - AROUND) : position],
            ids[position : position + 1],
            ids[position + 1 : position + 1 + AROUND],
        )
        one = Context(value, texts.names[texts.sources[row]], *map(tokenizer.decode, pieces))
        found.setdefault(tuple(ids[: position + 1]), one)
    return list(found.values())


def page(
    found: Comparison,
    table: "pd.DataFrame",
    atoms: Mapping[int, Atom],
    texts: Reading,
    tokenizer: Any,
    title: str,
    names: tuple[str, str],
    notes: list[str],
    shown: int,
    count: int,
) -> str:
    """The page as HTML; everything that comes from texts or models is escaped.

    `table` is latents.csv and `atoms` the dictionary's own. `shown` latents are listed in each
    direction, with `count` texts each of the model in which they are more active.
    """
    parts = []
    for name, side, ranked, rising in (
        (names[0], found.base, table[::-1], False),
        (names[1], found.changed, table, True),
    ):
        rows = ranked.head(shown)
        rows = rows[rows["difference"] > 0 if rising else rows["difference"] < 0]
        entries = [
            {
                "row": row,
                "atom": atoms.get(row["latent"]),
                "contexts": contexts(side.top, row["latent"], texts, tokenizer, count),
            }
            for row in rows.to_dict("records")
        ]
        if entries:
            heading = f"{'More' if rising else 'Less'} active in {names[1]}"
            parts.append({"heading": heading, "name": name, "latents": entries})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(TEMPLATE).render(
        title=title, names=names, fits=found.fits, notes=notes, parts=parts
    )
