"""Figures on the page: embedded while they fit, else shown from their files beside the page."""

import base64
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from model_diffs.report.signature import Comparison, Signature

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


def _wanted(
    signature: Signature, outroot: Path
) -> list[tuple[int, tuple[str, str], Path, str, str]]:
    """Rank, place on the page (axis, comparison), path, caption and alternative of all figures.

    Each model's first figure of an axis ranks before the second of any.
    """
    found = []
    owners: Sequence[Comparison | None] = [None, *signature.comparisons]
    for axis in signature.axes if signature.measures else ():
        for owner in owners:
            rank = 0
            for one in axis.figures:
                if ("{" in one.path) == (owner is None):
                    continue
                path = one.path
                if owner:
                    path = path.replace("{comparison}", owner.label)
                    path = path.replace("{model}", owner.changed)
                endings = [outroot / f"{path}{ending}" for ending in (".png", ".svg", ".pdf")]
                file = next((each for each in endings if each.is_file()), None)
                if file:
                    whose = f"{owner.short} against {signature.base}" if owner else "all models"
                    text = f"Figure, {axis.title}, {whose}: {one.caption}"
                    place = (axis.key, owner.label if owner else "")
                    found.append((rank, place, file, one.caption, text))
                    rank += 1
    return found


def pictures_of(
    signature: Signature, outroot: Path, room: int
) -> tuple[Mapping[tuple[str, str], Sequence[Picture]], str]:
    """The figures by axis and comparison label (empty: of all models), and a note on the rest.

    Embedded are those that fit into `room` bytes, in the order of their ranks; the others are shown
    from their files.
    """
    wanted = _wanted(signature, outroot)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i][0])
    made: dict[int, Picture] = {}
    for i in order:
        _, _, file, caption, text = wanted[i]
        href = "../" + quote(file.relative_to(outroot).as_posix())
        shown = file.suffix in TYPES
        size = 4 * -(-file.stat().st_size // 3) + 500  # base64, and what is around it
        if shown and size <= room:
            made[i] = as_picture(file.read_bytes(), href, caption, text)
            room -= size
        else:
            room = 0 if shown else room
            made[i] = Picture(href if shown else "", None, None, href, caption, text)
    found: dict[tuple[str, str], list[Picture]] = {}
    for i, (_, place, *_) in enumerate(wanted):
        found.setdefault(place, []).append(made[i])
    beside = sum(not one.embedded for one in made.values())
    note = f"{beside} figure{'s' * (beside > 1)} would make this page too large: they are shown "
    note += "from their files, so the page needs the folders of the results beside it."
    return found, note if beside else ""
