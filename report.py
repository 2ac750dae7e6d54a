"""Step 16. What did each intervention do? Everything that the steps found, on one page.

Reads the tables under an outroot, takes from each the measures that its step declares, draws
conclusions from their intervals by stated rules, and writes a page that needs no network.

    uv run report.py --outroot outputs
    uv run report.py --model-a ./models/miniature-base --filtered miniature-filtered \\
        --model-b ./models/miniature-filtered ./unlearned_models/miniature-base__npo

Writes <outroot>/report/: report.html, signature.csv (one row per comparison), signature.png,
measures.csv (which measures tell unlearning from harmless training); where a study has several
seeds signature_seeds.csv (mean and standard deviation over them).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Run, option, recorded
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import run_step
from model_diffs.core.step import Step, Table, load_steps
from model_diffs.report import inventory
from model_diffs.report.comparisons import choose_comparisons, with_roles

STEP = Step(
    number=16,
    folder=inventory.FOLDER,
    question="What did each intervention do?",
    scope="study",
    version=2,
    tables=(Table("signature"), Table("measures"), Table("signature_seeds")),
)


@dataclass(frozen=True, kw_only=True)
class Options(Run):
    """Comparisons."""

    model_a: str | None = option(
        None, "base; none: that of all comparisons under --outroot", recorded=False
    )
    model_b: tuple[str, ...] = option(
        (), "changed models; none: all that were compared with the base", recorded=False
    )
    filtered: str | None = option(
        None, "label or short name of the model that never learned; none: by `filter` in its name"
    )
    control: tuple[str, ...] = option(
        (), "labels or short names of models changed without unlearning"
    )
    harmless: tuple[str, ...] = option(
        (),
        "those of them that were made by training the base on harmless texts: a measure separates "
        "only if it tells unlearned models from all of them; none: by `benign` in their names",
    )


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder; a result that is new, gone, failed or stale makes another page."""
    outroot = Path(options.outroot)
    comparisons = choose_comparisons(outroot, options.model_a, options.model_b)
    found = inventory.take_inventory(outroot, comparisons, load_steps())
    decided = {
        **recorded(options),
        "base": comparisons[0].base if comparisons else None,
        "changed": [one.changed for one in comparisons],
        "results": inventory.fingerprint(outroot, found),
    }
    return [PlannedRun(Path(options.outdir or outroot / STEP.folder), "report", decided)]


def write_report(run: results.Run, options: Options) -> None:
    """Assemble, draw and write the page."""
    from model_diffs.report import assembling, conditions, page, signature_figure, verdicts
    from model_diffs.stats.seeds import over_seeds

    outroot, scripts = Path(options.outroot), load_steps()
    chosen = choose_comparisons(outroot, options.model_a, options.model_b)
    comparisons = with_roles(chosen, options.filtered, options.control, options.harmless)
    found = inventory.take_inventory(outroot, comparisons, scripts)
    # The base's or the study's results are no result of a comparison.
    if not any(one.there and one.comparison for one in found):
        raise BadInput(f"{outroot} holds no result of these comparisons: run steps first")
    signature = assembling.assemble(
        outroot, comparisons, inventory.missing_of(found), options.seed, scripts
    )
    provenance = conditions.conditions(outroot, comparisons, found)
    signature = dataclasses.replace(signature, provenance=provenance)
    run.reads(*inventory.files_of(found, ".csv", ".json", ".png", ".svg"))
    run.reads(*(one.folder / results.RECORD for one in found if one.there))
    run.reads(*conditions.training_logs(provenance))
    run.table("measures", verdicts.verdict_rows(signature), verdicts.COLUMNS)
    seeds = over_seeds(run.table("signature", assembling.signature_rows(signature)))
    if len(seeds):
        run.table("signature_seeds", seeds)
    image = b""
    if signature.measures:
        run.figure("signature", signature_figure.draw(signature))
        image = (run.path / "signature.png").read_bytes()
    html = page.render(signature, image, outroot)
    (run.path / "report.html").write_text(html, encoding="utf-8")
    run.record(
        comparisons=[one.label for one in comparisons],
        measures=[one.key for one in signature.measures],
        sentences=len(signature.sentences),
        missing=len(signature.missing),
        page_bytes=len(html.encode()),
    )


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Make the page."""
    for planned in todo:
        with results.open_run(planned) as run:
            write_report(run, options)
        print(planned.folder / "report.html")


if __name__ == "__main__":
    run_step(__name__)
