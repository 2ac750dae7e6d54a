"""The page of examples: the latents that changed most, and the texts in which they are active."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model_diffs.dictionaries.diffing import Comparison
from model_diffs.dictionaries.diffing_sums import Contexts
from model_diffs.dictionaries.itda_reading import Reading

TEMPLATE = "itda_examples.html.j2"
# Tokens shown on either side of the one where a latent is most active.
AROUND = 24


class Names(NamedTuple):
    """What the models are called."""

    title: str
    a: str
    b: str


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


def contexts(top: Contexts, latent: int, reading: Reading, tokenizer: Any) -> list[Context]:
    """Documents in which a latent is most active, cut to what stands around the token."""
    found = []
    for value, row, position in zip(*(part[:, latent].tolist() for part in top), strict=True):
        if row < 0 or value == -np.inf:
            continue
        ids = reading.tokens.ids[row]
        pieces = (
            ids[max(0, position - AROUND) : position],
            ids[position : position + 1],
            ids[position + 1 : position + 1 + AROUND],
        )
        source = reading.names[reading.sources[row]]
        before, token, after = (tokenizer.decode(piece) for piece in pieces)
        found.append(Context(f"{value:.2f}", source, before, token, after))
    return found


def page(
    found: Comparison,
    reading: Reading,
    tokenizer: Any,
    atoms: dict[int, Atom],
    names: Names,
    top: int,
    notes: list[str],
) -> str:
    """The page as HTML; everything that comes from texts or models is escaped."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined
    )
    rose = _part(found, reading, tokenizer, atoms, names, found.order[:top], rising=True)
    fell = _part(found, reading, tokenizer, atoms, names, found.order[::-1][:top], rising=False)
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
        parts=[part for part in (fell, rose) if part.latents],
    )


def _part(
    found: Comparison,
    reading: Reading,
    tokenizer: Any,
    atoms: dict[int, Atom],
    names: Names,
    latents: np.ndarray,
    rising: bool,
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
        means = [float(one.totals.mean[latent]) for one in (found.base, found.changed)]
        numbers = (
            f"mean {means[0]:.4f} in {names.a}, {means[1]:.4f} in {names.b}; change "
            f"{difference:+.4f} ± {float(changes.std_error[latent]):.4f} (standard error), "
            + ("in too few documents to test" if np.isnan(q) else f"q = {q:.2g}")
            + f"; in {int(changes.documents[latent])} documents"
        )
        texts = contexts(side.totals.top, latent, reading, tokenizer)
        shown.append(Latent(f"Latent {latent}", numbers, atoms.get(latent), texts))
    name = names.b if rising else names.a
    return Part(
        f"{'More' if rising else 'Less'} active in {names.b}",
        f"Texts with the highest coefficients in {name}.",
        shown,
    )
