"""Step 23. What did the study of brittleness find? One page from the tables of step 22.

    uv run report_brittleness.py
    uv run report_brittleness.py --prediction outputs/brittleness/prediction

Writes <outroot>/brittleness/page/brittleness.html. A table of it that is greyed says that the
measure tells nothing of an attack beyond what strength tells (docs/brittleness.md).
"""

from dataclasses import dataclass
from pathlib import Path

from model_diffs.core.errors import BadInput
from model_diffs.core.options import Run, option, recorded
from model_diffs.core.results import PlannedRun, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Step

STEP = Step(
    number=23,
    folder="page",
    question="What did the study of brittleness find?",
    scope="other",
)


@dataclass(frozen=True, kw_only=True)
class Options(Run):
    """The page."""

    study: str = option("brittleness", "study of several worlds, by name or path")
    prediction: str | None = option(
        None, "result of predict_brittleness.py; none: that of the study under --outroot"
    )


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder."""
    folder = Path(options.outdir or Path(options.outroot) / "brittleness" / STEP.folder)
    return [PlannedRun(folder, "page", recorded(options))]


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Read the tables and write the page."""
    from model_diffs.attacks import lock
    from model_diffs.brittleness import page
    from model_diffs.pipeline.studies import read_study

    study = read_study(options.study)
    if study.worlds is None:
        raise BadInput(f"{study.path}: no [worlds]: name a study of several")
    source = Path(options.prediction or Path(options.outroot) / "brittleness" / "prediction")
    tables = page.read(source)
    try:
        image = (source / page.IMAGE).read_bytes()
    except OSError as error:
        raise BadInput(f"{source / page.IMAGE}: {error.strerror}: {page.ADVICE}") from None
    why = lock.unregistered(study.worlds.registration)
    for planned in todo:
        with open_run(planned) as run:
            read = [source / f"{name}.csv" for name in page.TABLES]
            run.reads(source / page.IMAGE, *(one for one in read if one.is_file()))
            html = page.render(tables, image, [f"Read with care: {why}."] if why else [])
            (run.path / "brittleness.html").write_text(html, encoding="utf-8")
        print(planned.folder / "brittleness.html")


if __name__ == "__main__":
    run_step(__name__)
