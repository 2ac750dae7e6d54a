"""Figures inside the page: as they are while they fit, then with fewer colours, then fewer of them.

The palette is an octree of 256 colours without dithering. Lines and letters stay as they were; a
pixel of the miniature's figures moves by 1 of 255 in the mean, and files shrink to three tenths.
"""

import base64
import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

BUDGET_BYTES = 4_500_000  # of a page of five million; base64 included, text not
TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
_PNG = b"\x89PNG\r\n\x1a\n"


class Embedded(NamedTuple):
    """A figure as a data URI, with the pixels it takes so that the page does not jump."""

    uri: str
    width: int | None
    height: int | None


class Embedding(NamedTuple):
    """What was embedded, and what had to be done for it."""

    figures: dict[Path, Embedded]
    note: str
    """One sentence on what was recompressed or left out; empty where nothing was."""


def as_uri(content: bytes, kind: str) -> Embedded:
    """Bytes of an image as a data URI; `kind` is its file's ending."""
    width = height = None
    if content.startswith(_PNG):
        width, height = struct.unpack(">II", content[16:24])
    encoded = base64.b64encode(content).decode("ascii")
    return Embedded(f"data:{TYPES[kind]};base64,{encoded}", width, height)


def fewer_colours(content: bytes) -> bytes:
    """A PNG with a palette, or the same bytes where that is no smaller or it cannot be read."""
    from PIL import Image

    if not content.startswith(_PNG):
        return content
    try:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
    except OSError:
        return content  # the browser shows its text in its place
    # `optimize` would take three times as long for a few per cent.
    palette = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    return min(buffer.getvalue(), content, key=len)


def _encoded_size(contents: dict[Path, bytes]) -> int:
    return sum(4 * -(-len(content) // 3) for content in contents.values())


def embed(paths: Sequence[Path], budget: int = BUDGET_BYTES) -> Embedding:
    """Figures as data URIs of at most `budget` bytes together, the first ones before later ones.

    Files that are not there, or are of a kind that pages do not show, are left to their links.
    """
    contents = {p: p.read_bytes() for p in paths if p.suffix in TYPES and p.is_file()}
    notes = []
    before = _encoded_size(contents)
    if before > budget:
        with ThreadPoolExecutor() as pool:
            contents = dict(zip(contents, pool.map(fewer_colours, contents.values()), strict=True))
        after = _encoded_size(contents)
        notes.append(
            f"The {len(contents)} figures are shown in 256 colours, {after / 1e6:.1f} MB in place "
            f"of {before / 1e6:.1f} MB; their files are untouched."
        )
    kept, used = {}, 0
    for path, content in contents.items():
        cost = _encoded_size({path: content})
        if used + cost > budget:
            continue
        kept[path] = as_uri(content, path.suffix)
        used += cost
    if left := len(contents) - len(kept):
        notes.append(
            f"{left} figures more would make this page larger than five million bytes: "
            "they are linked in their places."
        )
    return Embedding(kept, " ".join(notes))
