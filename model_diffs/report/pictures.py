"""Figures on the page: embedded while they fit, else shown from their files beside the page."""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from model_diffs.report.signature import Signature

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
ENDINGS = (*TYPES, ".pdf")
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


def embedded(picture: Picture, content: bytes) -> Picture:
    """The picture with these bytes, of the kind that its link's ending says, in the page."""
    width = height = None
    if content.startswith(_PNG):
        width, height = struct.unpack(">II", content[16:24])
    kind = TYPES[Path(picture.href).suffix]
    encoded = base64.b64encode(content).decode("ascii")
    return picture._replace(src=f"data:{kind};base64,{encoded}", width=width, height=height)


def _wanted(
    signature: Signature, outroot: Path
) -> Iterator[tuple[int, tuple[str, str], Path, Picture]]:
    """Rank, place (axis, comparison label), file and picture of all figures, linked.

    Each model's first figure of an axis ranks before the second of any.
    """
    against = f"against {signature.base}"
    owners = [(c.label, c.changed, f"{c.short} {against}") for c in signature.comparisons]
    owners.insert(0, ("", "", "all models"))
    for axis in signature.axes:
        for label, changed, whose in owners if signature.of_axis(axis.key) else ():
            own = [one for one in axis.figures if ("{" in one.path) == bool(label)]
            for rank, (path, caption) in enumerate(own):
                path = path.replace("{comparison}", label).replace("{model}", changed)
                for file in [
                    f for f in (outroot / f"{path}{end}" for end in ENDINGS) if f.is_file()
                ][:1]:
                    href = "../" + quote(file.relative_to(outroot).as_posix())
                    text = f"Figure, {axis.title}, {whose}: {caption}"
                    src = href if file.suffix in TYPES else ""
                    picture = Picture(src, None, None, href, caption, text)
                    yield rank, (axis.key, label), file, picture


def pictures_of(
    signature: Signature, outroot: Path, room: int
) -> tuple[dict[tuple[str, str], list[Picture]], str]:
    """The figures by axis and comparison label (empty: of all models), and a note on the rest.

    Embedded are those that fit into `room` bytes, in the order of their ranks; the others are shown
    from their files.
    """
    found: dict[tuple[str, str], list[Picture]] = {}
    beside = 0
    for _, place, file, picture in sorted(_wanted(signature, outroot), key=lambda one: one[0]):
        # In base64, and with what is around it.
        room -= 4 * -(-file.stat().st_size // 3) + 500 if picture.src else 0
        if picture.src and room >= 0:
            picture = embedded(picture, file.read_bytes())
        beside += not picture.embedded
        found.setdefault(place, []).append(picture)
    note = f"{beside} figure{'s' * (beside > 1)} would make this page too large: they are shown "
    note += "from their files, so the page needs the folders of the results beside it."
    return found, note if beside else ""
