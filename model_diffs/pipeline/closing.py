"""What a run says at its end: a table of results, and where they are."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from model_diffs.core import memory, results
from model_diffs.pipeline import units
from model_diffs.pipeline.units import Target, Unit

Line = tuple[int, str, str, str]


def _print_table(lines: list[Line]) -> None:
    print(f"\n{'step':5s} {'comparison':62s} {'result':8s} {'seconds':>8s}")
    for number, label, result, seconds in lines:
        print(f"{number:<5d} {label:62s} {result:8s} {seconds:>8s}".rstrip())


def _print_places(outroot: str, planned: Sequence[Unit], dry_run: bool) -> None:
    print(f"\nResults: {outroot}")
    page = Path(outroot) / "report" / "report.html"
    folders = {one.planned.folder for unit in planned for one in unit.targets}
    if page.parent in folders and page.is_file() and not dry_run:
        print(f"Page:    {page}")


def print_commands(planned: Sequence[Unit], force: bool) -> None:
    """What a dry run says of each unit: its command, what it needs, and whether it fits."""
    fits = []
    for unit in planned:
        if unit.todo:
            words = shlex.join(units.narrowed(unit, force))
            print(f"step {unit.number}  would run: {unit.script.name} {words}")
            fits.append(units.fit(unit))
            for says, what in zip(("needs about", "does not fit:"), fits[-1], strict=True):
                if what:
                    print(f"        {says} {what}")
    said = [one for one in fits if one.needs]
    unknown = sum(one.needs.startswith(memory.UNKNOWN) for one in said)
    well = sum(not one.problem for one in said) - unknown
    more = f", of {unknown} nothing is known yet" if unknown else ""
    print(f"\nmemory:  {well} of {len(said)} units that load models fit{more}")


def print_pending(planned: Sequence[Unit], outroot: str) -> None:
    """The table of a dry run."""
    shown = {"complete": "skipped", "follows": "follows"}
    _print_table(
        [
            (unit.number, one.planned.label, shown.get(one.status, "pending"), "")
            for unit in planned
            for one in unit.targets
        ]
    )
    _print_places(outroot, planned, True)


def _outcome(target: Target, status: int | None) -> tuple[str, str]:
    """What became of a folder, and the seconds that this took. No status: its unit did not run."""
    if target.status == "complete":
        return "skipped", ""
    if target.status == "blocked" or status is None:
        return "pending", ""
    if not target.made():
        return "failed" if status else "skipped", ""
    return "done", str((results.read_record(target.planned.folder) or {}).get("seconds", ""))


def print_closing(
    planned: Sequence[Unit], ran: Sequence[tuple[Unit, int]], outroot: str, all_methods: bool
) -> None:
    """The closing table of all results."""
    # A unit may have run in parts: its results are told apart by their folders.
    statuses: dict[Path, int] = {}
    for unit, status in ran:
        for one in unit.targets:
            statuses[one.planned.folder] = status or statuses.get(one.planned.folder, 0)
    lines: list[Line] = []
    outcome: dict[Path, str] = {}
    for unit in planned:
        for one in unit.targets:
            result, seconds = _outcome(one, statuses.get(one.planned.folder))
            lines.append((unit.number, one.planned.label, result, seconds))
            outcome[one.planned.folder] = result
    _print_table(lines)
    if all_methods:
        from model_diffs.unlearning.summary import table as summary

        made = {place: one for place, one in outcome.items() if "unlearned_models" in str(place)}
        print("\n" + summary([*made], made))
    elif not any(status for _, status in ran):
        _print_places(outroot, planned, False)
