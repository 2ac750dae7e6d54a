"""Step 15. Which of the base's own activations does a changed model use more, or less?

Both models' activations are encoded with a dictionary of the base's (ITDA, train_itda.py); latents
are ordered by the change of their mean coefficient, with errors and tests over documents. How well
the dictionary fits each model is reported too: what it does not fit is in no latent's difference.
With `--dictionary sae:…` the latents are the features of an SAE.

    uv run diff.py --itda artifacts/runs/miniature-base --model-a models/miniature-base \\
        --model-b models/miniature-filtered unlearned_models/miniature-base__npo \\
        --dataset data/miniature/forget.txt data/miniature/retain.txt
    uv run diff.py --dictionary sae:google/gemma-scope-2b-pt-res/layer_12/width_16k --l0 100 \\
        --model-a google/gemma-2-2b --model-b ./tuned --dataset NeelNanda/pile-10k --max-samples 500
    uv run diff.py --compare-dictionaries artifacts/runs/one artifacts/runs/other

Writes <outroot>/<A>__to__<B>/itda_diffing/ with latents.csv, shares.csv (from which data set the
latents are that changed most), summary.json, itda_diffing.png and examples.html: the texts in which
these latents are most active.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Comparison, Figures, option, positive
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import execute, run_script
from model_diffs.core.step import Figure, Measure, Step, Table, comparison_runs, names_of, title_of
from model_diffs.dictionaries.options import Diffing

if TYPE_CHECKING:
    from model_diffs.dictionaries import diffing
    from model_diffs.dictionaries.reading import Reading

STEP = Step(
    number=15,
    folder="itda_diffing",
    question="Which of the base's own activations does a changed model use more, or less?",
    memory="model_diffs.dictionaries.memory:DIFF",
    needs=("forget", "retain", "dictionary"),
    optional=True,
    version=2,  # shares.csv
    tables=(Table("latents"), Table("shares")),
    figures=(Figure("itda_diffing", "Change of each latent, and fit of the dictionary"),),
    measures=tuple(
        Measure(
            f"latents_{direction}",
            axis="function",
            table="shares",
            column="over_chance",
            # The first data set is the forget set wherever the page is made.
            where={"direction": direction, "number": "1"},
            unit="change",
            label=f"forget latents that {direction}",
            meaning=f"Of the 20 latents that {direction} most, among those that one set of texts "
            "uses: the share of the forget set, over its share of all such latents.",
            undefined=f"no latent of one data set {direction}",
        )
        for direction in ("rose", "fell")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Diffing, Comparison, Figures):
    """Models and results shown."""

    model_a: str = option("", "base: org/name[@revision] or a folder", recorded=False)
    model_b: tuple[str, ...] = option((), "changed models", recorded=False)
    itda: str = option("", "folder of an ITDA dictionary of the base")
    dictionary: str = option(
        "", "in its place, sae: and a folder, org/name[/folder] or release:id of an SAE of the base"
    )
    top: int = option(20, "latents shown in each direction", check=positive)
    compare_dictionaries: tuple[str, ...] = option(
        (), "print the Jaccard index of two dictionaries' atoms and stop", recorded=False
    )


def __getattr__(name: str) -> object:
    """`from diff import ModelDiffing`, without loading torch for `--help`."""
    if name == "ModelDiffing":
        from model_diffs.dictionaries.diffing import ModelDiffing

        return ModelDiffing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def compare_dictionaries(first: str, second: str) -> None:
    """Print how many atoms two dictionaries have in common."""
    from model_diffs.dictionaries.itda import ITDA, jaccard

    a, b = ITDA.from_pretrained(first), ITDA.from_pretrained(second)
    print(f"Jaccard index {jaccard(a, b):.4f} ({a.size} and {b.size} atoms)")
    if a.metadata.get("dataset_sha256") != b.metadata.get("dataset_sha256"):
        print("They were trained on different texts, so the index says nothing.")


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder per comparison."""
    if options.dictionary and options.itda:
        raise BadInput("--itda and --dictionary: give one of them")
    missing = [n for n in ("model_a", "model_b") if not getattr(options, n)]
    missing += [] if options.dictionary else [n for n in ("itda",) if not options.itda]
    for name in missing:
        raise BadInput(f"--{name.replace('_', '-')} is missing (--help lists the options)")
    return comparison_runs(options, STEP.folder)


def write(
    run: Run,
    found: "diffing.Comparison",
    opened: "diffing.ModelDiffing",
    texts: "Reading",
    options: Options,
) -> None:
    """Table, summary, figure and examples of one comparison."""
    from model_diffs.core.figures import model_colour
    from model_diffs.dictionaries import examples, itda, reading, tables

    planned, layer = run.planned, opened.itda.layer
    title, names = title_of(planned), names_of(planned)
    latents = tables.latents(found, opened.itda, options.itda)
    run.table("latents", latents.drop(columns="before"))
    shares = tables.shares(found, latents, texts, options.top)
    run.table("shares", tables.share_rows(shares), tables.SHARE_COLUMNS)
    notes = tables.notes(found.fits["all"], shares, names[1])
    run.document("summary", tables.summary(found.fits, latents, shares, notes))
    heading, colour = f"Model diffing, layer {layer}: {title}", model_colour(planned.model_b)
    run.figure(STEP.folder, tables.figure(found.fits, latents, heading, names, colour))
    page = examples.page(
        found,
        latents,
        texts,
        opened.tokenizer,
        title=f"{title}, layer {layer}",
        names=names,
        notes=notes,
        shown=options.top,
        count=options.contexts,
    )
    (run.path / "examples.html").write_text(page, encoding="utf-8")
    of_sae = getattr(opened.itda, "files", None)
    run.reads(*(itda.files_of(options.itda) if of_sae is None else of_sae))
    models, device = [planned.model_a, planned.model_b], str(opened.device)
    reading.describe(run, models, texts, dictionary=opened.itda.metadata, device=device)
    for note in notes:
        print(f"{planned.folder}: {note}")


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Compare what is not complete; the base is encoded once for all changed models."""
    from model_diffs.dictionaries.diffing import ModelDiffing

    dictionary = options.dictionary or options.itda
    opened = ModelDiffing(dictionary, options.model_a, options.layer, options=options)
    texts = opened.read(options.dataset)
    changed = [planned.model_b for planned in todo]
    found = opened.compare(options.model_a, changed, texts, options.max_steps)
    for planned, one in zip(todo, found, strict=True):
        with open_run(planned) as run:
            write(run, one, opened, texts, options)


def start() -> None:
    """Compare two dictionaries where that is asked for; otherwise run the step."""
    compared = parse(Options, None, __doc__).compare_dictionaries
    if not compared:
        execute(sys.modules[__name__])
    elif len(compared) == 2:
        compare_dictionaries(*compared)
    else:
        raise BadInput("--compare-dictionaries takes two folders")


if __name__ == "__main__":
    run_script(start)
