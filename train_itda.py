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

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_diffs.core import naming
from model_diffs.core.options import Compute, Figures, option, recorded
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Step, Table, title_of
from model_diffs.dictionaries.options import Training

if TYPE_CHECKING:
    from model_diffs.dictionaries.itda_reading import Reading
    from model_diffs.dictionaries.itda_training import Trained

STEP = Step(
    number=15,
    folder="artifacts/runs",
    question="Which few of the base's activations make up all the others?",
    scope="other",
    needs=("forget", "retain", "dictionary"),
    optional=True,
    tables=(Table("atoms"), Table("training")),
    figures=(Figure("training", "Size and fit of the dictionary as it is trained"),),
)


@dataclass(frozen=True, kw_only=True)
class Options(Training, Compute, Figures):
    """Model and results."""

    model: str = option(help="org/name[@revision] or a folder", recorded=False)
    outdir: str | None = option(
        None, "folder of the dictionary; default: artifacts/runs/<model>__itda", recorded=False
    )
    force: bool = option(False, "run again what is complete", recorded=False)


def planned_runs(options: Options) -> list[PlannedRun]:
    """One folder per layer."""
    label = naming.model_label(options.model)
    place = Path(options.outdir or f"{STEP.folder}/{label}__itda")
    layers = sorted(set(options.layer))
    return [
        PlannedRun(
            folder=place / f"layer_{layer}" if len(layers) > 1 else place,
            label=f"{label}, layer {layer}",
            arguments={**recorded(options), "layer": layer, "model": options.model},
            model_a=options.model,
        )
        for layer in layers
    ]


def write(run: Run, one: "Trained", reading: "Reading", tokenizer: Any, options: Options) -> None:
    """A dictionary's folder."""
    from model_diffs.data import text_datasets
    from model_diffs.dictionaries import itda_training_report as report
    from model_diffs.models.checkpoints import Checkpoint

    checkpoint = Checkpoint.open(options.model)
    metadata = report.metadata(one, reading, tokenizer, options.model, options)
    report.dictionary(one, metadata).save(run.path)
    run.table("atoms", report.atom_rows(one, reading, tokenizer))
    run.table("training", one.steps)
    run.document("summary", report.summary(one))
    run.figure("training", report.figure(one, title_of(run.planned)))
    run.reads(*checkpoint.files)
    run.reads(*(file for split in reading.splits for file in text_datasets.files_of(split)))
    run.record(
        models={checkpoint.model: checkpoint.identity()},
        tokens_per_second=round(one.tokens_per_second),
        **reading.facts(),
    )
    print(f"{run.planned.folder}: {report.line(one)}")


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Train the dictionaries that are not complete, in one pass."""
    from model_diffs.activations import passes
    from model_diffs.dictionaries import itda_reading, itda_training
    from model_diffs.models import devices
    from model_diffs.models import loading as models

    tokenizer = models.load_tokenizer(options.model, options.trust_remote_code)
    reading = itda_reading.read(
        options.dataset,
        tokenizer,
        options.seq_len,
        keep_bos=options.keep_bos,
        skip_first=options.skip_first,
        max_samples=options.max_samples,
        seed=options.seed,
    )
    device = devices.pick_device(options.device)
    dtype = devices.pick_dtype(options.dtype, device)
    model = models.load_model(options.model, device, dtype, options.trust_remote_code)
    reader = passes.Reader(options.model, model)
    layers = [int(planned.arguments["layer"]) for planned in todo]
    with ExitStack() as folders:
        opened = [folders.enter_context(open_run(planned)) for planned in todo]
        pad = tokenizer.pad_token_id
        trained = itda_training.train(reader, reading, pad, layers, options)
        for run, one in zip(opened, trained, strict=True):
            write(run, one, reading, tokenizer, options)


if __name__ == "__main__":
    run_step(__name__)
