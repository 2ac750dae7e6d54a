"""A locked world is attacked only when the study is registered and its predictors are written.

The texts of a locked world name the registered document (`locked.json` beside the questions). That
document has a part between two marks that fixes the analysis; its hash, and that of each file that
the part names, is written beside it by `predict_brittleness.py --register`, and nothing is attacked
where they are not the same. Standard library only.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.core.folders import read_json

LOCKED = "locked.json"
FOLDER = "predictors"
"""Under the outroot of a world: what `write_predictors.py` wrote."""
BEGIN, END = "<!-- registered: begin -->", "<!-- registered: end -->"
_FILE = re.compile(r"^- `([^`]+)`", re.MULTILINE)
_FILES = "### Files"


def registered_part(document: Path) -> str:
    """The part that fixes the analysis. Raises BadInput where the document has none."""
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{document} cannot be read: {error.strerror}") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise BadInput(f"{document}: not one part between {BEGIN} and {END}")
    return text[text.index(BEGIN) : text.index(END)]


def hashes(document: Path) -> dict[str, str]:
    """SHA-256 of the registered part, and of each file that its section Files lists."""
    part = registered_part(document)
    found = {document.name: hashlib.sha256(part.encode()).hexdigest()}
    for name in _FILE.findall(part.partition(_FILES)[2]):
        try:
            found[name] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        except OSError as error:
            raise BadInput(f"{document} registers {name}: {error.strerror}") from None
    return found


def record_of(document: Path) -> Path:
    """Where the hashes are kept."""
    return document.with_name(f"{document.stem}.registered.json")


def register(document: Path) -> Path:
    """Keep the hashes as they are now. Raises BadInput where others are kept already."""
    record, now = record_of(document), hashes(document)
    if record.exists() and read_json(record) != now:
        raise BadInput(f"{record}: registered before, and something has changed since")
    record.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    return record


def unregistered(document: str) -> str:
    """Why the document does not count as registered; empty where it does."""
    kept = read_json(record_of(Path(document)))
    if kept is None:
        return f"{document} is not registered"
    now = hashes(Path(document))
    changed = [name for name in {**kept, **now} if kept.get(name) != now.get(name)]
    return f"{', '.join(changed)} changed since {document} was registered" if changed else ""


def check(questions: str | None, outroot: str, models: Iterable[str] = ()) -> None:
    """Raise BadInput for an attack on a locked world that is not registered, or on one of these
    models, by their short labels, that has no predictors there."""
    locked = read_json(Path(questions).parent / LOCKED) if questions else None
    if locked is None:
        return
    if why := unregistered(locked["registration"]):
        raise BadInput(f"{questions}: the world is locked: {why}")
    folder = Path(outroot) / FOLDER
    record = results.read_record(folder) or {}
    registered = read_json(record_of(Path(locked["registration"])))
    table = folder / "predictors.csv"
    if record.get("registered") != registered or not table.is_file():
        raise BadInput(
            f"{questions}: the world is locked until its predictors are written to {folder}: run "
            "write_predictors.py"
        )
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        known = {row.get("model") for row in csv.DictReader(file)}
    if lacking := [model for model in models if model not in known]:
        raise BadInput(
            f"{questions}: the world is locked, and {table} has no row of {', '.join(lacking)}: "
            "run write_predictors.py with all models"
        )
