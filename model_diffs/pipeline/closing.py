"""What a run says at its end: a table of results, and where they are."""

from collections.abc import Sequence
from pathlib import Path

from model_diffs.core import results
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


def _outcome(target: Target, status: int) -> tuple[str, str]:
    """What became of a folder, and the seconds that this took."""
    if target.status == "complete":
        return "skipped", ""
    if not target.made():
        return "failed" if status else "skipped", ""
    return "done", str((results.read_record(target.planned.folder) or {}).get("seconds", ""))


def print_closing(
    planned: Sequence[Unit], ran: Sequence[tuple[Unit, int]], outroot: str, all_methods: bool
) -> None:
    """The closing table: every result up to the last unit that ran."""
    statuses = {id(unit): status for unit, status in ran}
    lines: list[Line] = []
    outcome: dict[Path, str] = {}
    for unit in planned:
        if unit.todo and id(unit) not in statuses:
            # Of the first unit that did not run, what stands before its first missing result.
            done = unit.targets[: unit.targets.index(unit.todo[0])]
        else:
            done = unit.targets
        for one in done:
            result, seconds = _outcome(one, statuses.get(id(unit), 0))
            lines.append((unit.number, one.planned.label, result, seconds))
            outcome[one.planned.folder] = result
        if len(done) < len(unit.targets):
            break
    _print_table(lines)
    if all_methods:
        from model_diffs.unlearning.summary import table as summary

        made = {place: one for place, one in outcome.items() if "unlearned_models" in str(place)}
        print("\n" + summary([*made], made))
    elif not any(statuses.values()):
        _print_places(outroot, planned, False)
