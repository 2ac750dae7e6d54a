"""Which models a study compares: what `studies/*.sh` sets, read by the shell that they are for."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from model_diffs.core.errors import BadInput

FOLDER = Path(__file__).parents[2] / "studies"
_KEYS = ("BASE", "COMPARE", "FORGET_TEXT", "RETAIN_TEXT", "QUESTIONS", "UNLEARN")
# One key and one value per line; a list is its values, one after the other.
_PRINT = f"""
set -e
. "$1"
for key in {" ".join(_KEYS)}; do
  eval "values=(\\"\\${{$key[@]:-}}\\")"
  for value in "${{values[@]}}"; do
    if [ -n "$value" ]; then printf '%s\\t%s\\n' "$key" "$value"; fi
  done
done
"""


class Study(NamedTuple):
    """What a study file says."""

    name: str
    base: str
    compare: tuple[str, ...]
    """The models compared with the base that are not made by `unlearn.py`."""
    unlearn: tuple[str, ...]
    """Methods whose models join the comparison."""
    forget_text: str
    retain_text: str
    questions: str | None

    @property
    def models(self) -> tuple[str, ...]:
        """Base and compared models."""
        return (self.base, *self.compare)


def read_study(study: str, root: Path = FOLDER) -> Study:
    """A study by its name in `root`, or by its path.

    It is shell code and is run as such, like `pipeline.sh` does. Raises BadInput where there is no
    such study, where its shell fails, and where it names no base.
    """
    path = Path(study)
    if not path.is_file():
        path = root / f"{study.removesuffix('.sh')}.sh"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in root.glob("*.sh"))) or "none"
        raise BadInput(f"{study}: no such study; there are: {there}")
    ran = subprocess.run(
        ["bash", "-c", _PRINT, "bash", str(path.absolute())], capture_output=True, text=True
    )
    if ran.returncode:
        raise BadInput(f"{path}: {(ran.stderr.strip().splitlines() or ['it fails'])[-1]}")
    found: dict[str, list[str]] = {key: [] for key in _KEYS}
    for line in ran.stdout.splitlines():
        key, _, value = line.partition("\t")
        if key in found:
            found[key].append(value)
    if not found["BASE"]:
        raise BadInput(f"{path} sets no BASE")
    return Study(
        path.stem,
        found["BASE"][0],
        tuple(found["COMPARE"]),
        tuple(found["UNLEARN"]),
        (found["FORGET_TEXT"] or ["data/forget.txt"])[0],
        (found["RETAIN_TEXT"] or ["data/retain.txt"])[0],
        found["QUESTIONS"][0] if found["QUESTIONS"] else None,
    )
