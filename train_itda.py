"""A dictionary of real activations: which few of them make up all the others? ITDA training.

One pass over the texts: an activation that matching pursuit over the atoms so far reconstructs
worse than the threshold becomes an atom, until the dictionary is full. Several layers share the
pass; layer L is the output of block L, counted from 0, before any final norm.

    uv run train_itda.py --model models/miniature-base --layer 3 --k 1 --fvu-threshold 0.05 \\
        --dataset data/miniature/forget.txt data/miniature/retain.txt \\
        --outdir artifacts/runs/miniature-base
    uv run train_itda.py --model Qwen/Qwen2.5-7B-Instruct --layer 14 --layer 21 \\
        --dataset NeelNanda/pile-10k --outdir artifacts/runs/qwen

Writes <outdir>/, or with several layers <outdir>/layer_<L>/, with atoms.safetensors, metadata.yaml,
atoms.csv, training.csv, training.png and summary.json.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.core import arguments, naming, results
from model_diffs.core.results import PlannedRun
from model_diffs.dictionaries import itda_options

if TYPE_CHECKING:
    from model_diffs.dictionaries.itda_reading import Reading
    from model_diffs.dictionaries.itda_training import Settings, Trained


def add_training(parser: argparse.ArgumentParser) -> None:
    """What becomes an atom."""
    group = parser.add_argument_group("dictionary")
    group.add_argument(
        "--layer", type=arguments.natural, action="append", required=True, help="may be repeated"
    )
    group.add_argument("--k", type=arguments.positive_int, default=40, help="steps of the pursuit")
    group.add_argument("--max-atoms", type=arguments.positive_int, default=4096)
    group.add_argument(
        "--fvu-threshold",
        type=arguments.fraction,
        default=0.1,
        help="a token with a larger share of ‖x‖² unexplained becomes an atom",
    )
    group.add_argument(
        "--loss-threshold",
        type=arguments.positive_float,
        default=None,
        help="the published criterion instead: squared distance of unit vectors, divided by d",
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The texts."""
    group = itda_options.add_texts(parser)
    group.add_argument("--keep-bos", action="store_true", help="count BOS positions as tokens")
    group.add_argument("--skip-first", type=arguments.natural, default=0, help="positions left out")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--model", required=True, help="org/name[@revision] or a folder")
    add_training(parser)
    add_reading(parser)
    arguments.add_compute(parser)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--outdir", default=None, help="artifacts/runs/<model>__itda where not given"
    )
    group.add_argument("--seed", type=int, default=42, help="of the choice of samples")
    group.add_argument("--format", default="png", choices=["png", "pdf", "svg"], help="of figures")
    group.add_argument("--force", action="store_true", help="run again what is complete")
    return parser.parse_args(argv)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """One folder per layer."""
    label = naming.model_label(options.model)
    place = Path(options.outdir or f"artifacts/runs/{label}__itda")
    layers = sorted(set(options.layer))
    return [
        PlannedRun(
            place / f"layer_{layer}" if len(layers) > 1 else place,
            f"{label}, layer {layer}",
            {**arguments.recorded(options), "layer": layer, "model": options.model},
            options.model,
        )
        for layer in layers
    ]


def settings_of(options: argparse.Namespace) -> "Settings":
    """The numbers of the training."""
    from model_diffs.dictionaries.itda_training import Settings

    return Settings(
        k=options.k,
        max_atoms=options.max_atoms,
        fvu_threshold=options.fvu_threshold,
        loss_threshold=options.loss_threshold,
        batch_size=options.batch_size,
        max_steps=options.max_steps,
        seed=options.seed,
    )


def write(
    run: results.Run,
    one: "Trained",
    reading: "Reading",
    tokenizer: Any,
    options: argparse.Namespace,
) -> None:
    """A dictionary's folder."""
    from model_diffs.data import text_datasets
    from model_diffs.dictionaries import itda_training_report as report
    from model_diffs.models.checkpoints import Checkpoint

    checkpoint = Checkpoint.open(options.model)
    metadata = report.metadata(one, reading, tokenizer, options)
    report.dictionary(one, metadata).save(run.path)
    run.table("atoms", report.atom_rows(one, reading, tokenizer))
    run.table("training", one.steps)
    run.document("summary", report.summary(one))
    run.figure("training", report.figure(one, run.planned.label))
    run.reads(*checkpoint.files)
    run.reads(*(file for split in reading.splits for file in text_datasets.files_of(split)))
    run.record(
        models={checkpoint.model: checkpoint.identity()},
        tokens_per_second=round(one.tokens_per_second),
        **reading.facts(),
    )
    print(f"{run.planned.folder}: {report.line(one)}")


def train(options: argparse.Namespace) -> None:
    """Train the dictionaries that are not complete, in one pass."""
    todo = results.pending(planned_runs(options), options.force)
    if not todo:
        return
    from model_diffs.activations import passes
    from model_diffs.dictionaries import itda_reading, itda_training
    from model_diffs.models import loading as models

    tokenizer = models.load_tokenizer(options.model, options.trust_remote_code)
    how = itda_reading.ReadingOptions(
        options.seq_len, options.keep_bos, options.skip_first, options.max_samples, options.seed
    )
    reading = itda_reading.read(options.dataset, tokenizer, how)
    loading = argparse.Namespace(**vars(options), device_map=None)
    reader = passes.Reader(options.model, models.load_for(loading, options.model))
    layers = [int(planned.arguments["layer"]) for planned in todo]
    with ExitStack() as folders:
        opened = [folders.enter_context(results.open_run(planned)) for planned in todo]
        pad = tokenizer.pad_token_id
        trained = itda_training.train(reader, reading, pad, layers, settings_of(options))
        for run, one in zip(opened, trained, strict=True):
            write(run, one, reading, tokenizer, options)


def main() -> None:
    """The command line."""
    train(parse_arguments())


if __name__ == "__main__":
    arguments.run_script(main)
