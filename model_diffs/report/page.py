"""The page: one HTML file from a signature and the figures that the steps drew.

Names and texts come from outside: Jinja2 escapes every value, links are percent-encoded, and the
page's content security policy allows only its own script and style sheet.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model_diffs.core import figures
from model_diffs.core.step import Measure
from model_diffs.core.tables import Source
from model_diffs.report import formatting, verdicts
from model_diffs.report.assembling import signature_rows
from model_diffs.report.axes import AT_A_GLANCE, COUNTED
from model_diffs.report.conclusions import EXACT_RULE, OVERALL
from model_diffs.report.pictures import Picture, embedded, pictures_of
from model_diffs.report.signature import Axis, Sentence, Signature
from model_diffs.stats import seeds
from model_diffs.stats.estimates import Estimate

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 5_000_000


class Cell(NamedTuple):
    """One number, or the reason why there is none."""

    text: str
    interval: str = ""
    exact: str = ""
    """All digits, as sorted by; empty where there is no number."""
    tooltip: str = ""
    anchor: str = ""
    """Id of its row among the axis's numbers; empty where it has none."""
    source: Source | None = None
    alike: bool = False
    """Not told apart from controls."""


def number_cell(one: Estimate, measure: Measure, name: str, anchor: str = "") -> Cell:
    """A number as text; its tooltip has all digits and the source."""
    text, interval = formatting.number(one.value, measure.unit, one.low, one.high)
    exact = formatting.exact(one.value)
    tooltip = f"{name}, {measure.heading}: {exact}"
    if one.low is not None and one.high is not None:
        low, high = formatting.exact(one.low), formatting.exact(one.high)
        tooltip += f" (95 % interval {low} to {high})"
    return Cell(text, interval, exact, f"{tooltip}\n{one.source}", anchor, one.source)


def base_cell(signature: Signature, measure: Measure) -> Cell:
    """What the base has: its own number, or that of a model identical to it."""
    own = signature.base_values.get(measure.key)
    if own is not None:
        return number_cell(own, measure, signature.base)
    if measure.unchanged is None:
        return Cell(formatting.NO_VALUE, tooltip="not defined for an unchanged model")
    text, _ = formatting.number(measure.unchanged, measure.unit)
    tooltip = f"{text} by definition: a model identical to the base"
    return Cell(text, exact=formatting.exact(measure.unchanged), tooltip=tooltip)


def model_cell(signature: Signature, position: int, column: int) -> Cell:
    """The number of one comparison and measure, both by position, or why there is none."""
    comparison, measure = signature.comparisons[position], signature.measures[column]
    at = comparison.label, measure.key
    if at in signature.values:
        anchor, alike = f"n{position}-{column}", signature.alike(*at)
        found = number_cell(signature.values[at], measure, comparison.short, anchor)
        said = f"\n{verdicts.ALIKE}" * alike
        return found._replace(tooltip=found.tooltip + said, alike=alike)
    (steps,) = (one.steps for one in signature.axes if one.key == measure.axis)
    missing = [
        f"step {one.step} ({one.script}): {one.reason}"
        for one in signature.missing
        if one.step in steps and one.comparison in ("", comparison.label)
    ]
    why = signature.reasons.get(at) or "; ".join(dict.fromkeys(missing)) or "not in the tables"
    return Cell(formatting.NO_VALUE, tooltip=why)


def say(sentences: Iterable[Sentence]) -> dict[str, Any]:
    """Sentences, conclusions first, and rules: the numbers of its sentences, rule and sources."""
    ordered = sorted(sentences, key=lambda one: one.rule == EXACT_RULE)
    rules = []
    for rule in dict.fromkeys(one.rule for one in ordered):
        drew = [n for n, one in enumerate(ordered, 1) if one.rule == rule]
        sources = dict.fromkeys(source for n in drew for source in ordered[n - 1].sources)
        rules.append((", ".join(map(str, drew)), rule, [*sources]))
    return {"sentences": ordered, "rules": rules}


def _said(signature: Signature) -> dict[tuple[str, str], dict[str, Any]]:
    """By comparison and axis; at the top all conclusions where none is chosen for it."""
    axes = (OVERALL, *(axis.key for axis in signature.axes))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in signature.comparisons:
        mine = [s for s in signature.sentences if s.comparison == one.label]
        own = {axis: [s for s in mine if s.axis == axis] for axis in axes}
        own[OVERALL] = own[OVERALL] or mine
        found |= {(one.label, axis): say(sentences) for axis, sentences in own.items()}
    return found


def _beside(signature: Signature, key: str, changed: str) -> str:
    """In small beside a first answer: what training the change of weights took, and how many
    attacks tested the model."""
    if key == "relative_change":
        models = signature.provenance.get("models", ())
        trained = {one["label"]: one.get("sum_lr") for one in models}
        rate = trained.get(changed)
        return f"Σ lr {formatting.number(rate, 'ratio')[0]}" if rate else ""
    columns = [one.key for one in signature.measures]
    if COUNTED.get(key) not in columns:
        return ""
    at = [one.changed for one in signature.comparisons].index(changed)
    cell = model_cell(signature, at, columns.index(COUNTED[key]))
    if cell.exact is None or cell.exact == "":
        return ""
    count = int(float(cell.exact))
    return f"of {count} attack{'s' * (count != 1)}"


def _glances(signature: Signature, cells: Sequence[Sequence[Cell]]) -> list[dict[str, Any]]:
    """The first answers, as far as they have numbers; bars in per cent of 1 for shares, else of
    the row's largest number."""
    found = []
    for column, measure in enumerate(signature.measures):
        if measure.key in AT_A_GLANCE:
            numbers = [float(one.exact or 0) for one in cells[column]]
            whole = 1.0 if measure.unit in ("accuracy", "share") else max(map(abs, numbers)) or 1.0
            bars = [min(100.0, max(0.0, 100 * one / whole)) for one in numbers]
            question = AT_A_GLANCE[measure.key]
            notes = [_beside(signature, measure.key, one.changed) for one in signature.comparisons]
            row = {"question": question, "column": column, "bars": bars, "notes": notes}
            found.append({**row, "alike": verdicts.in_words(signature, measure.key)})
    return sorted(found, key=lambda one: [*AT_A_GLANCE.values()].index(one["question"]))


def _lacking(signature: Signature) -> list[tuple[int, str, str, str]]:
    """Step, script, models and reason of what is missing or failed, equal reasons together."""
    short = {one.label: one.short for one in signature.comparisons}
    grouped: dict[tuple[int, str, str], dict[str, None]] = {}
    for one in signature.missing:
        owners = grouped.setdefault((one.step, one.script, one.reason), {})
        owners[short.get(one.comparison, one.comparison)] = None
    found = []
    for (step, script, reason), owners in grouped.items():
        everyone = len(owners) > 1 and {*owners} == {*short.values()}
        found.append((step, script, "all models" if everyone else ", ".join(owners), reason))
    return found


def _left_out(signature: Signature) -> list[tuple[Axis, str]]:
    """The axes without a number, and the steps in the list of what is missing."""
    found = []
    for axis in signature.axes:
        if not signature.of_axis(axis.key):
            steps = sorted({one.step for one in signature.missing} & {*axis.steps})
            names = ", ".join(map(str, steps))
            found.append((axis, f"step{'s' * (len(steps) > 1)} {names} below" if steps else ""))
    return found


def model_colours(signature: Signature) -> list[str]:
    """The colours that figures give to the changed models; controls are grey."""
    names = [one.short for one in signature.comparisons]
    greys = [*figures.CONTROLS.values()]
    found = []
    for at, one in enumerate(signature.comparisons):
        known = one.changed if figures.method_of(one.changed) else one.short
        colour = figures.model_colour(known, names)
        if one.role == "filtered":
            colour = figures.FILTERED
        elif one.role == "control" and colour not in greys:
            colour = greys[at % len(greys)]
        found.append(colour)
    return found


def _trained_once(signature: Signature) -> list[str]:
    """Labels of the comparisons whose model has no other training seed beside it."""
    entries = [seeds.entry_of(one.short) for one in signature.comparisons]
    pairs = zip(entries, signature.comparisons, strict=True)
    return [one.label for entry, one in pairs if entries.count(entry) == 1]


def _over_seeds(signature: Signature, table: Any) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of mean ± standard deviation over training seeds, from signature_seeds."""
    short = (row.changed.removeprefix(f"{row.base}__") for row in table.itertuples())
    heads = [f"{one}, {count} seeds" for one, count in zip(short, table["seeds"], strict=True)]
    rows = []
    for measure in signature.measures:
        if f"{measure.key}_mean" in table:
            found = zip(table[f"{measure.key}_mean"], table[f"{measure.key}_std"], strict=True)
            rows.append(
                [measure.heading, *(formatting.spread(*two, measure.unit) for two in found)]
            )
    return heads, rows


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name in ("size", "duration", "day", "count"):
        environment.filters[f"as_{name}"] = getattr(formatting, name)
    environment.filters["link"] = lambda path: "../" + quote(path)
    environment.filters["sentence_case"] = lambda text: text[:1].upper() + text[1:]
    return environment


def policy_hash(text: str) -> str:
    """How a content security policy names an inline style or script that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _context(signature: Signature, image: bytes) -> dict[str, Any]:
    """What the template shows, all but the axes' sections."""
    # The policy allows no style in an element: a class per model has its colour.
    table = seeds.over_seeds(pd.DataFrame(signature_rows(signature)))
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    for i, colour in enumerate(model_colours(signature)):
        style += f".model-{i} {{ --model: {colour}; }}\n"
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    positions, columns = range(len(signature.comparisons)), range(len(signature.measures))
    roles = [one.role for one in signature.comparisons]
    known = {"filtered": (), "control": ("filtered",), "unlearned": ("filtered", "control")}
    cells = [[model_cell(signature, i, column) for i in positions] for column in columns]
    names = ", ".join(one.short for one in signature.comparisons)
    text = f"The signature of {names} against {signature.base}; the table below has its numbers."
    caption = "A panel per measure with its own scale; bars are 95 % intervals, where it has them."
    picture = Picture("", None, None, "signature.png", caption, text)
    return {
        # Images from files: figures that the page has no room for lie beside it.
        "policy": (
            f"default-src 'none'; img-src data: 'self'; style-src {policy_hash(style)}; "
            f"script-src {policy_hash(script)}; base-uri 'none'; form-action 'none'"
        ),
        # Both are files of this package, not values: nothing in them comes from outside.
        "style": Markup(style),
        "script": Markup(script),
        "signature": signature,
        "axes": [axis for axis in signature.axes if signature.of_axis(axis.key)],
        "picture": embedded(picture, image) if image else picture,
        "cells": cells,
        "base_cells": [base_cell(signature, one) for one in signature.measures],
        "roles": roles,
        "compared_with": lambda at: [i for i in positions if roles[i] in known[roles[at]]],
        "once": _trained_once(signature),
        "over_seeds": _over_seeds(signature, table),
        "alike": {one.key: verdicts.in_words(signature, one.key) for one in signature.measures},
        "alike_rule": verdicts.RULES,
        "exact_rule": EXACT_RULE,
        "shorts": lambda places: [signature.comparisons[at].short for at in places],
        "glances": _glances(signature, cells),
        "said": _said(signature),
        "lacking": _lacking(signature),
        "left_out": _left_out(signature),
        "conditions": signature.provenance,
    }


def render(signature: Signature, image: bytes, outroot: Path, page_bytes: int = PAGE_BYTES) -> str:
    """The whole page as HTML, with figures embedded up to about `page_bytes`.

    `image`: signature.png, which is always embedded; `outroot`: where the steps' figures are.
    """
    template = _environment().get_template("page.html.j2")
    context = _context(signature, image)

    def html(room: int) -> str:
        pictures, note = pictures_of(signature, outroot, room)
        return template.render(**context, pictures=pictures, note=note)

    # The text is measured first: figures get the room that it leaves.
    return html(page_bytes - len(html(0).encode()))
