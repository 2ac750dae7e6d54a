"""Figures on the page: embedded while they fit, else shown from their files beside the page."""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from model_diffs.report.signature import Signature

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
_PNG = b"\x89PNG\r\n\x1a\n"


class Picture(NamedTuple):
    """A figure in its place."""

    src: str
    """Its bytes as a data URI, or its file; empty for a format that browsers do not show."""
    width: int | None
    height: int | None
    """In pixels, so that the page does not jump while it loads."""
    href: str
    caption: str
    alternative: str

    @property
    def embedded(self) -> bool:
        return self.src.startswith("data:")


def as_picture(content: bytes, href: str, caption: str, alternative: str) -> Picture:
    """An image embedded in the page."""
    width = height = None
    if content.startswith(_PNG):
        width, height = struct.unpack(">II", content[16:24])
    kind = TYPES[Path(href).suffix]
    encoded = base64.b64encode(content).decode("ascii")
    return Picture(f"data:{kind};base64,{encoded}", width, height, href, caption, alternative)


class _Wanted(NamedTuple):
    """A figure that an axis names for a comparison, or for all of them."""

    rank: int
    """Each model's first figure of an axis ranks before the second of any."""
    place: tuple[str, str]
    """Axis and comparison label (empty: all)."""
    file: Path
    caption: str
    alternative: str


def _wanted(signature: Signature, outroot: Path) -> Iterator[_Wanted]:
    owners = [("", "", "all models")]
    owners += [(c.label, c.changed, f"{c.short} against {signature.base}")
               for c in signature.comparisons]  # fmt: skip
    for axis in signature.axes:
        for label, changed, whose in owners if signature.of_axis(axis.key) else ():
            own = [one for one in axis.figures if ("{" in one.path) == bool(label)]
            for rank, (path, caption) in enumerate(own):
                path = path.replace("{comparison}", label).replace("{model}", changed)
                endings = [outroot / f"{path}{ending}" for ending in (".png", ".svg", ".pdf")]
                for file in [each for each in endings if each.is_file()][:1]:
                    alternative = f"Figure, {axis.title}, {whose}: {caption}"
                    yield _Wanted(rank, (axis.key, label), file, caption, alternative)


def pictures_of(
    signature: Signature, outroot: Path, room: int
) -> tuple[dict[tuple[str, str], list[Picture]], str]:
    """The figures by axis and comparison label (empty: of all models), and a note on the rest.

    Embedded are those that fit into `room` bytes, in the order of their ranks; the others are shown
    from their files.
    """
    found: dict[tuple[str, str], list[Picture]] = {}
    beside = 0
    for one in sorted(_wanted(signature, outroot), key=lambda one: one.rank):
        href = "../" + quote(one.file.relative_to(outroot).as_posix())
        shown = one.file.suffix in TYPES
        room -= 4 * -(-one.file.stat().st_size // 3) + 500 if shown else 0  # base64, and around it
        if shown and room >= 0:
            picture = as_picture(one.file.read_bytes(), href, one.caption, one.alternative)
        else:
            beside += 1
            src = href if shown else ""
            picture = Picture(src, None, None, href, one.caption, one.alternative)
        found.setdefault(one.place, []).append(picture)
    note = f"{beside} figure{'s' * (beside > 1)} would make this page too large: they are shown "
    note += "from their files, so the page needs the folders of the results beside it."
    return found, note if beside else ""
