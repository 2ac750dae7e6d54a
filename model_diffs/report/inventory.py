"""Which step left a result for which comparison, and in which state it is.

Standard library only: the pipeline asks before anything is read.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core import results as runs
from model_diffs.core.results import PlannedRun
from model_diffs.report.comparisons import Pair
from model_diffs.report.signature import Missing

# The one line of bad input, the last of a traceback, what the system says of a killed process.
FAILURE = re.compile(
    r"\S+\.py: |[\w.]*(Error|Exception|Interrupt)\b|Killed|Segmentation|Terminated"
)


class Step(NamedTuple):
    """One step of the pipeline and where it leaves its results."""

    number: int
    script: str
    folder: str
    scope: str = "comparison"
    """Whose folder it is in: a `comparison`'s, a `model`'s, or of the whole `study`."""
    optional: bool = False
    """A study may do without: its absence is worth a line only where another comparison has it."""


STEPS = (
    Step(1, "collect_param_stats.py", "param_stats"),
    Step(2, "plot_param_stats.py", "param_plots"),
    Step(4, "collect_activation_norms.py", "activation_stats"),
    Step(5, "plot_activation_norms.py", "activation_plots"),
    Step(5, "plot_side_by_side.py", "{base}__side_by_side", "study"),
    Step(6, "analyze_mlp_vs_attn.py", "mlp_attn_analysis"),
    Step(7, "null_space_analysis.py", "null_space_analysis"),
    Step(8, "activation_separation_analysis.py", "activation_separation"),
    Step(9, "activation_covariance_analysis.py", "activation_covariance"),
    Step(10, "mlp_nullspace_alignment.py", "mlp_nullspace"),
    Step(11, "row_space_projection_analysis.py", "row_space_projection"),
    Step(12, "local_lipschitzness_analysis.py", "lipschitzness"),
    Step(13, "linear_probe_analysis.py", "linear_probes", "model"),
    Step(14, "relearn.py", "relearning", "model"),
    Step(14, "relearn.py", "relearning", "study"),
    Step(15, "diff.py", "itda_diffing", optional=True),
)


class Result(NamedTuple):
    """The folder of one step for one comparison, model or study, and its state."""

    step: Step
    owner: str
    """Label of the comparison or model; empty for the study."""
    comparison: str
    """Label of the comparison that it serves; empty where it serves all."""
    folder: Path
    status: str
    """`complete`, `stale`, `missing` or `failed`."""
    reason: str
    record: Mapping[str, Any]
    """Its run.json; empty where there is none."""

    @property
    def there(self) -> bool:
        """Whether it can be read."""
        return self.status in ("complete", "stale")


# ── results ───────────────────────────────────────────────────────────────────────────────────────


def _places(outroot: Path, pairs: Sequence[Pair]) -> list[tuple[Step, str, str, Path]]:
    """Step, owner, comparison and folder of everything that the pipeline leaves for these pairs."""
    base = pairs[0].base
    found = []
    for step in STEPS:
        if step.scope == "study":
            found.append((step, "", "", outroot / step.folder.format(base=base)))
        elif step.scope == "comparison":
            found += [(step, p.label, p.label, outroot / p.label / step.folder) for p in pairs]
        else:
            found.append((step, base, "", outroot / base / step.folder))
            found += [(step, p.changed, p.label, outroot / p.changed / step.folder) for p in pairs]
    return found


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _absence(outroot: Path, step: Step, newest: float) -> tuple[str, str]:
    """Status and reason of a folder that is not there; `newest`: time of the step's last result.

    A log that is newer than every result and ends as errors do is that of a failure; also any log
    where there is no result at all.
    """
    log = outroot / "logs" / f"{step.number}_{step.script.removesuffix('.py')}.log"
    if log.is_file() and log.stat().st_mtime > newest:
        last = _last_line(log)
        if FAILURE.match(last) or not newest:
            return "failed", f"failed, {last or 'its log is empty'}"
    return "missing", "not run"


def _well_formed(record: Mapping[str, Any]) -> bool:
    """Whether what is read from a record of a run has the types that runs write."""
    files, inputs = record.get("outputs", []), record.get("inputs", [])
    return (
        isinstance(record.get("arguments", {}), dict)
        and isinstance(files, list)
        and all(isinstance(name, str) for name in files)
        and isinstance(inputs, list)
        and all(isinstance(one, dict) and {*one} >= {"path", "mtime_ns", "size"} for one in inputs)
        and all(isinstance(one["path"], str) for one in inputs)
    )


def _state(folder: Path, label: str) -> tuple[str, str, dict[str, Any]]:
    record = runs.read_record(folder)
    if not isinstance(record, dict) or not _well_formed(record):
        there = (folder / runs.RECORD).exists()
        return (
            ("failed", f"failed, its {runs.RECORD} cannot be read", {}) if there else ("", "", {})
        )
    # Against its own arguments: what may have changed is files.
    found = runs.state(PlannedRun(folder, label, record.get("arguments", {})))
    if found.status == "stale" and found.reason.endswith(" is gone"):
        return "failed", f"failed, {found.reason}", record
    return found.status, found.reason, record


def take_inventory(outroot: Path, pairs: Sequence[Pair]) -> list[Result]:
    """The state of every step's result for these pairs, in the order of the steps."""
    if not pairs:
        return []
    places = _places(outroot, pairs)
    # Of all results, also those of other comparisons: the log is one for all of them.
    newest: dict[str, float] = {}
    for step in STEPS:
        pattern = step.folder.format(base="*") if step.scope == "study" else f"*/{step.folder}"
        for written in outroot.glob(f"{pattern}/{runs.RECORD}"):
            newest[step.script] = max(newest.get(step.script, 0.0), written.stat().st_mtime)
    found = []
    for step, owner, comparison, folder in places:
        status, reason, record = _state(folder, owner)
        if not status:
            status, reason = _absence(outroot, step, newest.get(step.script, 0.0))
            if step.optional and status == "missing" and step.script not in newest:
                continue
        elif status == "stale":
            # Said from where one stands; the page is read from elsewhere.
            here = os.path.relpath(outroot) + os.sep
            reason = reason.removeprefix(here).removeprefix(f"{owner}/")
            reason = f"stale, {reason} since; what it left is shown as it was"
        found.append(Result(step, owner, comparison, folder, status, reason, record))
    return found


def missing_of(results: Iterable[Result]) -> list[Missing]:
    """What is missing, stale or failed, for the list on the page."""
    found = []
    for one in results:
        if one.status != "complete":
            # A model that serves all comparisons is the base; its row has to say so.
            reason = (
                f"{one.owner}: {one.reason}" if one.owner and not one.comparison else one.reason
            )
            found.append(Missing(one.step.number, one.step.script, one.comparison, reason))
    return found


def files_of(results: Iterable[Result], *endings: str) -> list[Path]:
    """The files with these endings that the readable results say they wrote."""
    found = []
    for one in results:
        if one.there:
            for name in one.record.get("outputs", []):
                inside = os.path.normpath(name)
                if name.endswith(endings) and not inside.startswith(("..", os.sep)):
                    found.append(one.folder / inside)
    return sorted(set(found))


def fingerprint(outroot: Path, results: Iterable[Result]) -> str:
    """Which results there are and in which state, in a few letters: a new one changes it."""
    # Why a result is stale is said from where one stands, which is no difference in the result.
    lines = [
        "\t".join(
            (
                one.folder.relative_to(outroot).as_posix(),
                one.status,
                one.reason if one.status == "failed" else "",
            )
        )
        for one in results
    ]
    there = sum(line.split("\t")[1] in ("complete", "stale") for line in lines)
    digest = sha256("\n".join(lines).encode()).hexdigest()
    return f"{there} of {len(lines)} ({digest[:8]})"
