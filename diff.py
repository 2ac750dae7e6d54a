"""Step 15. Which of the base's own activations does a changed model use more, or less?

Both models' activations are encoded with a dictionary of the base's (ITDA, train_itda.py); latents
are ordered by the change of their mean coefficient, with errors and tests over documents. How well
the dictionary fits each model is said beside, for what it does not fit no latent can show.

    uv run diff.py --itda artifacts/runs/miniature-base --model-a models/miniature-base \\
        --model-b models/miniature-filtered unlearned_models/miniature-base__npo \\
        --dataset data/miniature/forget.txt data/miniature/retain.txt
    uv run diff.py --compare-dictionaries artifacts/runs/one artifacts/runs/other

Writes <outroot>/<A>__to__<B>/itda_diffing/ with latents.csv, summary.json, itda_diffing.png and
examples.html: the texts in which the latents that changed most are most active.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_diffs.core import arguments, results
from model_diffs.core.results import PlannedRun
from model_diffs.dictionaries import itda_options

if TYPE_CHECKING:
    from model_diffs.dictionaries.diffing import Comparison, ModelDiffing
    from model_diffs.dictionaries.itda_reading import Reading

FOLDER = "itda_diffing"


def __getattr__(name: str) -> object:
    """`from diff import ModelDiffing`, without loading torch for `--help`."""
    if name == "ModelDiffing":
        from model_diffs.dictionaries.diffing import ModelDiffing

        return ModelDiffing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def add_diffing(parser: argparse.ArgumentParser) -> None:
    """The dictionary, and what is shown."""
    group = parser.add_argument_group("diffing")
    group.add_argument("--itda", default=None, help="folder of a dictionary of the base")
    group.add_argument(
        "--layer", type=arguments.natural, default=None, help="to be sure of the dictionary's"
    )
    group.add_argument(
        "--top", type=arguments.positive_int, default=20, help="latents shown in each direction"
    )
    group.add_argument(
        "--contexts", type=arguments.positive_int, default=5, help="texts shown for each"
    )
    group.add_argument(
        "--side-by-side",
        choices=["auto", "yes", "no"],
        default="auto",
        help="all models in memory together, or one after the other",
    )
    group.add_argument(
        "--compare-dictionaries",
        nargs=2,
        metavar="ITDA",
        default=None,
        help="print the Jaccard index of two dictionaries' atoms, and do nothing else",
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_comparison(parser, required=False)
    add_diffing(parser)
    itda_options.add_texts(parser)
    arguments.add_compute(parser)
    arguments.add_figures(parser)
    options = parser.parse_args(argv)
    if not options.compare_dictionaries:
        for name in ("itda", "model_a", "model_b"):
            if not getattr(options, name):
                parser.error(f"--{name.replace('_', '-')} is missing")
    return options


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per comparison."""
    return [] if options.compare_dictionaries else arguments.comparison_runs(options, FOLDER)


def write(
    run: results.Run,
    found: "Comparison",
    diffing: "ModelDiffing",
    reading: "Reading",
    options: argparse.Namespace,
) -> None:
    """Table, summary, figure and examples of one comparison."""
    from model_diffs.core.figures import model_colour
    from model_diffs.data import text_datasets
    from model_diffs.dictionaries import diffing_contexts, diffing_examples, diffing_report, itda
    from model_diffs.models.checkpoints import Checkpoint

    planned = run.planned
    title, (name_a, name_b) = arguments.title_of(planned), arguments.names_of(planned)
    atoms = diffing_report.atoms_of(options.itda)
    run.table("latents", diffing_report.latent_rows(found, diffing.itda, atoms))
    shares = diffing_contexts.shares(found, reading, options.top)
    run.document("summary", diffing_report.summary(found, shares, name_b))
    colour = model_colour(planned.model_b)
    heading = f"Model diffing, layer {diffing.itda.layer}: {title}"
    run.figure(FOLDER, diffing_report.figure(found, heading, (name_a, name_b), colour))
    names = diffing_examples.Names(f"{title}, layer {diffing.itda.layer}", name_a, name_b)
    said = diffing_report.notes(found, shares, name_b)
    shown = diffing_examples.Shown(options.top, options.contexts)
    page = diffing_examples.page(found, reading, diffing.tokenizer, atoms, names, shown, said)
    (run.path / "examples.html").write_text(page, encoding="utf-8")
    checkpoints = [Checkpoint.open(m) for m in (planned.model_a, planned.model_b)]
    for checkpoint in checkpoints:
        run.reads(*checkpoint.files)
    run.reads(*itda.files_of(options.itda))
    run.reads(*(file for split in reading.splits for file in text_datasets.files_of(split)))
    run.record(
        models={c.model: c.identity() for c in checkpoints},
        dictionary=diffing.itda.metadata,
        device=str(diffing.device),
        **reading.facts(),
    )
    for note in said:
        print(f"{planned.folder}: {note}")


def compare_dictionaries(first: str, second: str) -> None:
    """Print how alike two dictionaries' choices of atoms are."""
    from model_diffs.dictionaries.itda import ITDA, jaccard

    a, b = ITDA.from_pretrained(first), ITDA.from_pretrained(second)
    print(f"Jaccard index {jaccard(a, b):.4f} ({a.size} and {b.size} atoms)")
    if a.metadata.get("dataset_sha256") != b.metadata.get("dataset_sha256"):
        print("The dictionaries read different texts: their atoms cannot be the same ones.")


def compare(options: argparse.Namespace) -> None:
    """Compare what is not complete; the base is encoded once for all changed models."""
    todo = results.pending(planned_runs(options), options.force)
    if not todo:
        return
    from model_diffs.dictionaries.diffing import ModelDiffing
    from model_diffs.dictionaries.itda import ITDA

    layer = options.layer
    diffing = ModelDiffing(
        options.itda,
        options.model_a,
        ITDA.from_pretrained(options.itda).layer if layer is None else layer,
        options.device,
        options.seq_len,
        options.batch_size,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        side_by_side=options.side_by_side,
        contexts=options.contexts,
        seed=options.seed,
        scratch=options.outroot,
    )
    reading = diffing.read(options.dataset, options.max_samples)
    changed = [planned.model_b for planned in todo]
    found = diffing.compare(options.model_a, changed, reading, options.max_steps)
    for planned, one in zip(todo, found, strict=True):
        with results.open_run(planned) as run:
            write(run, one, diffing, reading, options)


def main() -> None:
    """The command line."""
    options = parse_arguments()
    if options.compare_dictionaries:
        compare_dictionaries(*options.compare_dictionaries)
    else:
        compare(options)


if __name__ == "__main__":
    arguments.run_script(main)
