"""The page: one HTML file that needs nothing else, from a signature and the figures that it names.

Names and texts come from outside: Jinja2 escapes whatever is put in, links are percent-encoded, and
the page's own policy lets a browser run only the one script that was written for it.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model_diffs.core import figures
from model_diffs.report import cells, embedding, formatting, saying, views
from model_diffs.report.embedding import Embedded
from model_diffs.report.signature import Signature
from model_diffs.report.views import Picture

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 5_000_000
FIGURE_TEXT_BYTES = 500  # what an embedded figure adds besides its data


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
    environment.filters["link"] = cells.link
    environment.filters["file_name"] = views.file_name
    return environment


def _allow(text: str) -> str:
    """A block's entry in the page's content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def model_colours(signature: Signature) -> list[str]:
    """The colours that figures give to the changed models."""
    names = [comparison.short for comparison in signature.comparisons]
    return [
        figures.FILTERED
        if comparison.filtered
        else figures.model_colour(comparison.changed, names)
        if figures.method_of(comparison.changed)
        else figures.model_colour(comparison.short, names)
        for comparison in signature.comparisons
    ]


def _style(signature: Signature) -> str:
    """The style sheet, with a class per model: the policy allows no style in an element."""
    rules = [
        f".model-{position} {{ --model: {colour}; }}\n"
        for position, colour in enumerate(model_colours(signature))
    ]
    return (TEMPLATES / "page.css").read_text(encoding="utf-8") + "".join(rules)


def wanted_figures(signature: Signature, outroot: Path) -> list[tuple[str, str, str]]:
    """Path, caption and alternative text of all figures, the most telling first.

    Each comparison's first figure of an axis comes before the second of any: where the page has no
    room for all, all models lose alike. A step that drew in another format left another ending.
    """
    ranked: list[tuple[int, str, str, str]] = []
    for axis in signature.axes:
        owners = [None, *signature.comparisons]
        for owner in owners:
            whose = f"{owner.short} against {signature.base}" if owner else "all models"
            for rank, (path, caption) in enumerate(views.figure_paths(axis, owner)):
                there = _in_any_format(outroot, path)
                if there:
                    alternative = f"Figure, {axis.title}, {whose}: {caption}"
                    ranked.append((rank, there, caption, alternative))
    return [(path, caption, text) for _, path, caption, text in sorted(ranked, key=lambda r: r[0])]


def _in_any_format(outroot: Path, path: str) -> str:
    for ending in (Path(path).suffix, ".png", ".svg", ".pdf"):
        candidate = str(Path(path).with_suffix(ending).as_posix())
        if (outroot / candidate).is_file():
            return candidate
    return ""


def _pictures(
    wanted: Sequence[tuple[str, str, str]], embedded: Mapping[Path, Embedded], outroot: Path
) -> dict[str, Picture]:
    """The figures by the path that the axis names: embedded where they are, else linked."""
    found = {}
    for path, caption, alternative in wanted:
        one = embedded.get(outroot / path)
        shown = (one.uri, one.width, one.height) if one else ("", None, None)
        picture = Picture(*shown, cells.link(path), caption, alternative)
        # An axis names the PNG; the picture may be of another format.
        found[path] = found[str(Path(path).with_suffix(".png").as_posix())] = picture
    return found


def _signature_picture(image: bytes, signature: Signature) -> Picture:
    one = embedding.as_uri(image, ".png")
    names = ", ".join(comparison.short for comparison in signature.comparisons)
    alternative = (
        f"The signature of {names} against {signature.base}: for every measure one mark per model "
        "with its 95 % interval. The table below has its numbers."
    )
    return Picture(one.uri, one.width, one.height, "signature.png", "", alternative)


def by_step(runs: Sequence[Mapping[str, Any]], signature: Signature) -> list[dict[str, Any]]:
    """The runs of the provenance by step and script, with links to their tables and records."""
    short = {comparison.label: comparison.short for comparison in signature.comparisons}
    steps: dict[tuple[int, str], dict[str, Any]] = {}
    for run in runs:
        key = (run["step"], run["script"])
        entry = steps.setdefault(
            key,
            {"step": key[0], "script": key[1], "seconds": 0.0, "owners": [], "command": ""},
        )
        entry["seconds"] += run["seconds"] or 0.0
        entry["command"] = run["command"] or entry["command"]
        name = short.get(run["comparison"]) or run["owner"] or "all models"
        entry["owners"].append(
            {
                "name": name,
                "record": f"{run['folder']}/run.json",
                "tables": [f"{run['folder']}/{table}" for table in run["tables"]],
            }
        )
    return list(steps.values())


def how_measured(conditions: Mapping[str, Any]) -> str:
    """Texts, device and precision in one phrase; empty where nothing is recorded."""
    counts: dict[str, int] = {}
    for text in conditions.get("texts", []):
        if isinstance(text["texts"], int):
            counts[text["split"]] = max(text["texts"], counts.get(text["split"], 0))
    parts = []
    if counts:
        named = [f"{formatting.count(number)} {split}" for split, number in counts.items()]
        parts.append("with " + " and ".join(named) + " texts")
    where = [
        f"{word} {', '.join(conditions[key])}"
        for word, key in (("on", "devices"), ("in", "dtypes"))
        if conditions.get(key)
    ]
    return ", ".join([*parts, *([" ".join(where)] if where else [])])


def _context(signature: Signature, image: bytes) -> dict[str, Any]:
    """What the template shows, all but the axes with their figures."""
    style = _style(signature)
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return {
        "policy": (
            f"default-src 'none'; img-src data:; style-src {_allow(style)}; "
            f"script-src {_allow(script)}; base-uri 'none'; form-action 'none'"
        ),
        # Both are files of this package, not values: nothing in them comes from outside.
        "style": Markup(style),
        "script": Markup(script),
        "signature": signature,
        "picture": _signature_picture(image, signature),
        "groups": views.table_groups(signature),
        "glances": views.glances(signature),
        "verdicts": saying.verdicts(signature),
        "lacking": views.lacking(signature),
        "left_out": views.left_out(signature),
        "conditions": signature.provenance,
        "how": how_measured(signature.provenance),
        "steps": by_step(signature.provenance.get("runs", []), signature),
    }


def render(signature: Signature, image: bytes, outroot: Path, page_bytes: int = PAGE_BYTES) -> str:
    """The whole page as HTML, of about `page_bytes` at most where the text alone is not more.

    `image`: signature.png; `outroot`: where the axes' figures lie.
    """
    template = _environment().get_template("page.html.j2")
    context = _context(signature, image)
    wanted = wanted_figures(signature, outroot)

    def html(embedded: Mapping[Path, Embedded], note: str) -> str:
        pictures = _pictures(wanted, embedded, outroot)
        return template.render(**context, axes=views.axis_views(signature, pictures), note=note)

    # The text is measured first: figures get the room that it leaves.
    room = page_bytes - len(html({}, "").encode()) - FIGURE_TEXT_BYTES * len(wanted)
    made = embedding.embed([outroot / path for path, _, _ in wanted], max(0, room))
    return html(made.figures, made.note)
