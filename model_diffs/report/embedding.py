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

AT_ONCE = 16  # figures shrunk before the next look at how much room is left
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


def _encoded_size(content: bytes) -> int:
    return 4 * -(-len(content) // 3)


def _shrunk(paths: Sequence[Path], contents: dict[Path, bytes], budget: int) -> dict[Path, bytes]:
    """Figures in fewer colours, as many as fit: what will not be shown is not worked on."""
    kept: dict[Path, bytes] = {}
    used = 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), AT_ONCE):
            chunk = paths[start : start + AT_ONCE]
            for path, content in zip(
                chunk, pool.map(fewer_colours, (contents[path] for path in chunk)), strict=True
            ):
                cost = _encoded_size(content)
                if used + cost > budget:
                    return kept
                kept[path] = content
                used += cost
    return kept


def embed(paths: Sequence[Path], budget: int) -> Embedding:
    """Figures as data URIs of at most `budget` bytes together, the first ones before later ones.

    Files that are not there, or are of a kind that pages do not show, are left to their links.
    """
    contents = {p: p.read_bytes() for p in paths if p.suffix in TYPES and p.is_file()}
    notes = []
    kept = contents
    if sum(map(_encoded_size, contents.values())) > budget:
        kept = _shrunk(list(contents), contents, budget)
        before, after = (
            sum(_encoded_size(found[path]) for path in kept) / 1e6 for found in (contents, kept)
        )
        if kept:
            notes.append(
                f"{len(kept)} figures are shown in 256 colours, which takes {after:.1f} MB in "
                f"place of {before:.1f} MB; their files are untouched."
            )
    if left := len(contents) - len(kept):
        more = f"{left} more figure{'s' if left > 1 else ''}"
        notes.append(f"{more} would make this page too large and stand as links.")
    uris = {path: as_uri(content, path.suffix) for path, content in kept.items()}
    return Embedding(uris, " ".join(notes))
