"""The page of examples: the latents that changed most, and the texts in which they are active."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model_diffs.dictionaries.diffing import Comparison
from model_diffs.dictionaries.diffing_sums import Contexts, ModelTotals
from model_diffs.dictionaries.itda_reading import Reading

TEMPLATE = "itda_examples.html.j2"
# Tokens shown on either side of the one where a latent is most active.
AROUND = 24


class Names(NamedTuple):
    """What the models are called."""

    title: str
    a: str
    b: str


class Shown(NamedTuple):
    """How much is shown."""

    latents: int
    """In each direction."""
    contexts: int
    """Of each latent."""


class Atom(NamedTuple):
    """Where an atom was found, as text."""

    before: str
    token: str


class Context(NamedTuple):
    """One text in which a latent is active."""

    value: str
    source: str
    before: str
    token: str
    after: str


class Latent(NamedTuple):
    """One latent of the page."""

    heading: str
    numbers: str
    atom: Atom | None
    contexts: list[Context]


class Part(NamedTuple):
    """The latents that rose, or those that fell."""

    heading: str
    explained: str
    latents: list[Latent]


def contexts(
    top: Contexts, latent: int, reading: Reading, tokenizer: Any, count: int
) -> list[Context]:
    """Up to `count` texts in which a latent is most active, cut to what stands around the token.

    Of texts that are the same up to that token, where a causal model is in the same state, one.
    """
    found: dict[tuple[int, ...], Context] = {}
    for value, row, position in zip(*(part[:, latent].tolist() for part in top), strict=True):
        if row < 0 or value == -np.inf:
            break
        ids = reading.tokens.ids[row]
        beginning = tuple(ids[: position + 1])
        if beginning in found or len(found) == count:
            continue
        pieces = (
            ids[max(0, position - AROUND) : position],
            ids[position : position + 1],
            ids[position + 1 : position + 1 + AROUND],
        )
        source = reading.names[reading.sources[row]]
        before, token, after = (tokenizer.decode(piece) for piece in pieces)
        found[beginning] = Context(f"{value:.2f}", source, before, token, after)
    return list(found.values())


def page(
    found: Comparison,
    reading: Reading,
    tokenizer: Any,
    atoms: dict[int, Atom],
    names: Names,
    shown: Shown,
    notes: list[str],
) -> str:
    """The page as HTML; everything that comes from texts or models is escaped."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined
    )

    def texts(totals: ModelTotals, latent: int) -> list[Context]:
        return contexts(totals.top, latent, reading, tokenizer, shown.contexts)

    parts = [
        _part(found, atoms, names, found.order[::-1][: shown.latents], False, texts),
        _part(found, atoms, names, found.order[: shown.latents], True, texts),
    ]
    fits = [
        {
            "texts": name,
            "a": f"{float(fit.a.mean):.4f}",
            "b": f"{float(fit.b.mean):.4f}",
            "change": f"{float(fit.change.mean):+.4f} [{float(fit.change.low):+.4f}, "
            f"{float(fit.change.high):+.4f}]",
        }
        for name, fit in found.fits.items()
    ]
    intro = (
        "Latents of a dictionary of activations whose mean coefficient changed most, with the "
        "texts in which each is most active. The marked token is where. FVU: share of the "
        "activations' squared norm that the dictionary leaves unexplained."
    )
    return environment.get_template(TEMPLATE).render(
        title=f"Model diffing: {names.title}",
        intro=intro,
        name_a=names.a,
        name_b=names.b,
        fits=fits,
        notes=notes,
        parts=[part for part in parts if part.latents],
    )


def _part(
    found: Comparison,
    atoms: dict[int, Atom],
    names: Names,
    latents: np.ndarray,
    rising: bool,
    texts: Callable[[ModelTotals, int], list[Context]],
) -> Part:
    """Texts are those of the model in which the latent is more active."""
    changes = found.changes
    side = found.changed if rising else found.base
    shown = []
    for latent in latents.tolist():
        difference = float(changes.difference[latent])
        if (difference > 0) != rising or difference == 0:
            continue
        q = changes.q_value[latent]
        error = float(changes.std_error[latent])
        means = [float(one.totals.mean[latent]) for one in (found.base, found.changed)]
        numbers = (
            f"mean {means[0]:.4f} in {names.a}, {means[1]:.4f} in {names.b}; change "
            f"{difference:+.4f}, "
            + ("" if np.isnan(error) else f"standard error {error:.4f}, ")
            + ("in too few documents to test" if np.isnan(q) else f"q = {q:.2g}")
            + f"; in {int(changes.documents[latent])} documents"
        )
        own = texts(side.totals, latent)
        shown.append(Latent(f"Latent {latent}", numbers, atoms.get(latent), own))
    name = names.b if rising else names.a
    return Part(
        f"{'More' if rising else 'Less'} active in {names.b}",
        f"Texts with the highest coefficients in {name}.",
        shown,
    )
