"""Progress bars: one look, on a terminal only.

`pipeline.sh` sends the output of a step to its log and hands the terminal over as an extra file
descriptor, named in MODEL_DIFFS_PROGRESS_FD, so that bars stay visible and logs stay readable.
"""

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

PROGRESS_FD = "MODEL_DIFFS_PROGRESS_FD"
# The line of the terminal, counted from the cursor, for processes that draw at the same time.
PROGRESS_LINE = "MODEL_DIFFS_PROGRESS_LINE"


def _stream() -> TextIO:
    descriptor = os.environ.get(PROGRESS_FD, "")
    if not descriptor.isdigit():
        return sys.stderr
    try:
        return os.fdopen(os.dup(int(descriptor)), "w")
    except OSError:  # the descriptor was closed on the way here, as job schedulers do
        return sys.stderr


def progress(
    iterable: Iterable[Any] | None = None,
    description: str = "",
    total: float | None = None,
    unit: str = "it",
) -> tqdm:
    """A tqdm bar over `iterable` (or a manual one of `total` units), silent without a terminal.

    Only the first of several processes draws.
    """
    stream = _stream()
    quiet = not stream.isatty() or os.environ.get("RANK", "0") != "0"
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        file=stream,
        disable=quiet,
        dynamic_ncols=True,
        leave=False,
        position=int(os.environ.get(PROGRESS_LINE, "0")),
        mininterval=0.2,
    )
