"""The page: one HTML file from a signature and the figures that the steps drew.

Names and texts come from outside: Jinja2 escapes every value, links are percent-encoded, and the
page's content security policy allows only its own script and style sheet.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model_diffs.core import figures
from model_diffs.core.tables import Source
from model_diffs.report import formatting
from model_diffs.report.axes import AT_A_GLANCE
from model_diffs.report.cells import Cell, base_cell, model_cell
from model_diffs.report.conclusions import EXACT_RULE, OVERALL
from model_diffs.report.pictures import Picture, as_picture, pictures_of
from model_diffs.report.signature import Axis, Comparison, Sentence, Signature

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 5_000_000


class Rule(NamedTuple):
    """A rule, the numbers of the conclusions it drew, and the cells that they are from."""

    numbers: str
    rule: str
    sources: Sequence[Source]


class Said(NamedTuple):
    """Conclusions on one model; a rule that drew several is told once."""

    sentences: Sequence[Sentence]
    rules: Sequence[Rule]


class Panel(NamedTuple):
    """What a section shows of one comparison."""

    position: int
    comparison: Comparison
    said: Said
    pictures: Sequence[Picture]


class Section(NamedTuple):
    """One axis."""

    axis: Axis
    columns: Sequence[int]
    """Positions of its measures."""
    pictures: Sequence[Picture]
    """Those that show all models at once."""
    panels: Sequence[Panel]


class Lacking(NamedTuple):
    """What one step lacks for one reason, and for which models."""

    step: int
    script: str
    whose: str
    reason: str


# ── the parts of the page ─────────────────────────────────────────────────────────────────────────


def say(sentences: Iterable[Sentence]) -> Said:
    """Sentences with their rules; conclusions before numbers that are only set side by side."""
    ordered = sorted(sentences, key=lambda one: one.rule == EXACT_RULE)
    numbers: dict[str, list[int]] = {}
    for number, one in enumerate(ordered, 1):
        numbers.setdefault(one.rule, []).append(number)
    rules = []
    for rule, drew in numbers.items():
        sources = dict.fromkeys(source for n in drew for source in ordered[n - 1].sources)
        rules.append(Rule(", ".join(map(str, drew)), rule, [*sources]))
    return Said(ordered, rules)


def _findings(signature: Signature) -> list[Panel]:
    """The conclusions at the top, by comparison: all of them where none is chosen for the top."""
    found = []
    for position, one in enumerate(signature.comparisons):
        mine = [s for s in signature.sentences if s.comparison == one.label]
        said = say([s for s in mine if s.axis == OVERALL] or mine)
        found.append(Panel(position, one, said, []))
    return found


def _sections(signature: Signature, pictures: Mapping[Any, Sequence[Picture]]) -> list[Section]:
    found = []
    for axis in signature.axes:
        columns = [i for i, one in enumerate(signature.measures) if one.axis == axis.key]
        panels = []
        for position, one in enumerate(signature.comparisons):
            own = [
                s for s in signature.sentences if (s.axis, s.comparison) == (axis.key, one.label)
            ]
            panels.append(Panel(position, one, say(own), pictures.get((axis.key, one.label), [])))
        if columns:
            found.append(Section(axis, columns, pictures.get((axis.key, ""), []), panels))
    return found


def _bars(cells: Sequence[Cell], unit: str) -> list[float]:
    """Length of each number's bar in per cent: of 1 for shares, else of the row's largest."""
    numbers = [float(one.exact or 0) for one in cells]
    scale = 1.0 if unit in ("accuracy", "share") else max(map(abs, numbers))
    return [min(100.0, max(0.0, 100 * one / scale)) if scale else 0.0 for one in numbers]


def _glances(signature: Signature, cells: Sequence[Sequence[Cell]]) -> list[dict[str, Any]]:
    """The first answers: of the questions in AT_A_GLANCE those that have numbers."""
    columns = {one.key: i for i, one in enumerate(signature.measures)}
    return [
        {
            "question": question,
            "column": columns[key],
            "bars": _bars(cells[columns[key]], signature.measures[columns[key]].unit),
        }
        for key, question in AT_A_GLANCE.items()
        if key in columns
    ]


def _lacking(signature: Signature) -> list[Lacking]:
    """What is missing or failed, equal reasons together."""
    short = {one.label: one.short for one in signature.comparisons}
    grouped: dict[tuple[int, str, str], dict[str, None]] = {}
    for one in signature.missing:
        owners = grouped.setdefault((one.step, one.script, one.reason), {})
        owners[short.get(one.comparison, one.comparison)] = None
    found = []
    for (step, script, reason), owners in grouped.items():
        names = [owner for owner in owners if owner]
        everyone = len(names) > 1 and {*names} == {*short.values()}
        whose = "all models" if everyone else ", ".join(names)
        found.append(Lacking(step, script, whose, reason))
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


def _by_step(signature: Signature) -> list[dict[str, Any]]:
    """The runs of the provenance by step and script, with their tables and records."""
    short = {one.label: one.short for one in signature.comparisons}
    steps: dict[tuple[int, str], dict[str, Any]] = {}
    for run in signature.provenance.get("runs", []):
        new = {"step": run["step"], "script": run["script"], "seconds": 0.0, "owners": []}
        entry = steps.setdefault((run["step"], run["script"]), new)
        entry["seconds"] += run["seconds"] or 0.0
        entry["command"] = run["command"] or entry.get("command", "")
        name = short.get(run["comparison"]) or run["owner"] or "all models"
        tables = [f"{run['folder']}/{table}" for table in run["tables"]]
        record = f"{run['folder']}/run.json"
        entry["owners"].append({"name": name, "record": record, "tables": tables})
    return [*steps.values()]


def _how_measured(conditions: Mapping[str, Any]) -> str:
    """Texts, device and precision in one phrase; empty where nothing is recorded."""
    counts: dict[str, int] = {}
    for text in conditions.get("texts", []):
        if text["texts"] is not None:
            counts[text["split"]] = max(text["texts"], counts.get(text["split"], 0))
    named = [f"{formatting.count(number)} {split}" for split, number in counts.items()]
    where = [
        f"{word} {', '.join(conditions[key])}"
        for word, key in (("on", "devices"), ("in", "dtypes"))
        if conditions.get(key)
    ]
    texts = "with " + " and ".join(named) + " texts" if named else ""
    return ", ".join(filter(None, [texts, " ".join(where)]))


# ── rendering ─────────────────────────────────────────────────────────────────────────────────────


def model_colours(signature: Signature) -> list[str]:
    """The colours that figures give to the changed models."""
    names = [one.short for one in signature.comparisons]
    return [
        figures.FILTERED
        if one.role == "filtered"
        else figures.model_colour(
            one.changed if figures.method_of(one.changed) else one.short, names
        )
        for one in signature.comparisons
    ]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("size", "duration", "day", "count"):
        environment.filters[f"as_{name}"] = getattr(formatting, name)
    environment.filters["link"] = lambda path: "../" + quote(path)
    environment.filters["file_name"] = lambda path: PurePosixPath(path).name
    environment.filters["sentence_case"] = lambda text: text[:1].upper() + text[1:]
    return environment


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _context(signature: Signature, image: bytes) -> dict[str, Any]:
    """What the template shows, all but the axes' sections."""
    # The policy allows no style in an element: a class per model has its colour.
    rules = [
        f".model-{i} {{ --model: {colour}; }}\n"
        for i, colour in enumerate(model_colours(signature))
    ]
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8") + "".join(rules)
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    positions, columns = range(len(signature.comparisons)), range(len(signature.measures))
    cells = [[model_cell(signature, i, column) for i in positions] for column in columns]
    alternative = (
        f"The signature of {', '.join(one.short for one in signature.comparisons)} against "
        f"{signature.base}: for every measure one mark per model with its 95 % interval. The "
        "table below has its numbers."
    )
    return {
        # Images from files: figures that the page has no room for lie beside it.
        "policy": (
            f"default-src 'none'; img-src data: 'self'; style-src {_hash(style)}; "
            f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
        ),
        # Both are files of this package, not values: nothing in them comes from outside.
        "style": Markup(style),
        "script": Markup(script),
        "signature": signature,
        "picture": as_picture(image, "signature.png", "", alternative),
        "cells": cells,
        "base_cells": [base_cell(signature, one) for one in signature.measures],
        "reference": next(
            (i for i in positions if signature.comparisons[i] is signature.filtered), -1
        ),
        "glances": _glances(signature, cells),
        "findings": _findings(signature),
        "lacking": _lacking(signature),
        "left_out": _left_out(signature),
        "conditions": signature.provenance,
        "how": _how_measured(signature.provenance),
        "steps": _by_step(signature),
    }


def render(signature: Signature, image: bytes, outroot: Path, page_bytes: int = PAGE_BYTES) -> str:
    """The whole page as HTML, with figures embedded up to about `page_bytes`.

    `image`: signature.png, which is always embedded; `outroot`: where the steps' figures are.
    """
    template = _environment().get_template("page.html.j2")
    context = _context(signature, image)

    def html(room: int) -> str:
        pictures, note = pictures_of(signature, outroot, room)
        return template.render(**context, sections=_sections(signature, pictures), note=note)

    # The text is measured first: figures get the room that it leaves.
    return html(page_bytes - len(html(0).encode()))
