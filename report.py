"""Step 16. What did each intervention do? Everything that the steps found, on one page.

Reads the tables under an outroot, takes from each the few numbers that make a model's signature,
draws conclusions from their intervals by stated rules, and writes a page that needs nothing else.

    uv run report.py --outroot outputs
    uv run report.py --model-a ./models/miniature-base --filtered miniature-filtered \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__npo

Writes <outroot>/report/: report.html, signature.csv (one row per comparison), signature.png.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from model_diffs.core import arguments
from model_diffs.core import results as runs
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun
from model_diffs.report import inventory
from model_diffs.report.comparisons import Pair, choose_pairs, comparisons_of
from model_diffs.report.inventory import Result

FOLDER = "report"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    group = parser.add_argument_group("models")
    group.add_argument("--model-a", default=None, help="base; none: that of all comparisons")
    group.add_argument("--model-b", default=None, nargs="+", help="changed models; none: all found")
    group.add_argument(
        "--filtered", default=None, help="which one never learned; none: known by `filter` in it"
    )
    group = parser.add_argument_group("run")
    group.add_argument("--outroot", default="outputs", help="folder of all results")
    group.add_argument("--seed", type=int, default=42, help="seed of everything random")
    group.add_argument("--force", action="store_true", help="run again what is complete")
    return parser.parse_args(argv)


def found_results(options: argparse.Namespace) -> tuple[list[Pair], list[Result]]:
    """The comparisons of the report and the state of every step's result."""
    outroot = Path(options.outroot)
    pairs = choose_pairs(outroot, options.model_a, options.model_b)
    return pairs, inventory.take_inventory(outroot, pairs)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder; a result that is new, gone, failed or stale makes another page."""
    pairs, results = found_results(options)
    outroot = Path(options.outroot)
    decided = {
        **arguments.recorded(options),
        "base": pairs[0].base if pairs else None,
        "changed": [pair.changed for pair in pairs],
        "results": inventory.fingerprint(outroot, results),
    }
    return [PlannedRun(outroot / FOLDER, "report", decided)]


def write_report(run: runs.Run, options: argparse.Namespace) -> Path:
    """Assemble, draw and write; returns the page's path while the run is open."""
    from model_diffs.report import assembling, conditions, page, signature_figure

    outroot = Path(options.outroot)
    found = choose_pairs(outroot, options.model_a, options.model_b)
    comparisons = comparisons_of(found, options.filtered)
    pairs = [Pair(one.label, one.base, one.changed) for one in comparisons]
    results = inventory.take_inventory(outroot, pairs)
    missing = inventory.missing_of(results)
    signature = assembling.assemble(outroot, pairs[0].base, comparisons, missing, options.seed)
    signature = dataclasses.replace(
        signature, provenance=conditions.conditions(outroot, pairs, results)
    )
    run.reads(*inventory.files_of(results, ".csv", ".json", ".png", ".svg"))
    run.reads(*(one.folder / runs.RECORD for one in results if one.there))
    run.table("signature", assembling.signature_rows(signature))
    image = b""
    if signature.measures:
        run.figure("signature", signature_figure.draw(signature))
        image = (run.path / "signature.png").read_bytes()
    html = page.render(signature, image, outroot)
    path = run.path / "report.html"
    path.write_text(html, encoding="utf-8")
    run.record(
        comparisons=[comparison.label for comparison in comparisons],
        measures=[measure.key for measure in signature.measures],
        sentences=len(signature.sentences),
        missing=len(missing),
        page_bytes=path.stat().st_size,
    )
    return path


def main() -> None:
    """Make the page unless nothing that it reads has changed."""
    options = parse_arguments()
    _, results = found_results(options)
    # What the base or the study has is no result of a comparison.
    if not any(one.there and one.comparison for one in results):
        raise BadInput(f"{options.outroot} holds no result of these comparisons: run steps first")
    for planned in runs.pending(planned_runs(options), options.force):
        with runs.open_run(planned) as run:
            name = write_report(run, options).name
        print(planned.folder / name)


if __name__ == "__main__":
    arguments.run_script(main)
