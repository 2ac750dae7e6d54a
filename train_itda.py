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
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core import naming
from model_diffs.core.options import Compute, Figures, option, recorded
from model_diffs.core.results import PlannedRun, Run, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Figure, Step, Table, title_of
from model_diffs.dictionaries.options import Training

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.dictionaries.reading import Reading
    from model_diffs.dictionaries.training import Trained

# Tokens shown before an atom's own in atoms.csv.
CONTEXT = 12


class AtomRow(NamedTuple):
    """A row of atoms.csv: where an atom was found."""

    latent: int
    sequence: int
    """Row of the text in the data sets, one after the other."""
    position: int
    token: str
    before: str
    """The text up to the token."""


STEP = Step(
    number=15,
    folder="artifacts/runs",
    question="Which few of the base's activations make up all the others?",
    memory="model_diffs.dictionaries.memory:TRAIN",
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
        None,
        "folder of the dictionary; default: artifacts/runs/<model>__itda",
        recorded=False,
        written=True,
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


def metadata(one: "Trained", texts: "Reading", tokenizer: Any, options: Options) -> dict[str, Any]:
    """metadata.yaml: the published keys, then the criterion and hashes of texts and tokenizer."""
    from model_diffs.dictionaries.reading import tokenizer_sha256

    return {
        "lm_name": options.model,
        "layer": one.layer,
        "submodule_name": None,
        "activation_dim": one.atoms.shape[1],
        "k": options.k,
        "loss_threshold": options.loss_threshold,
        "dataset": ", ".join(options.dataset),
        "seq_len": options.seq_len,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "max_dict_size": options.max_atoms,
        "steps": len(one.rows),
        "fvu_threshold": options.fvu_threshold if options.loss_threshold is None else None,
        "keep_bos": options.keep_bos,
        "skip_first": options.skip_first,
        "dataset_sha256": texts.sha256(),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }


def atom_rows(one: "Trained", texts: "Reading", tokenizer: Any) -> list[AtomRow]:
    """A row per atom, with its token and the `CONTEXT` tokens before as text."""
    row_of = {int(text): row for row, text in enumerate(texts.tokens.documents)}
    rows = []
    for latent, (sequence, position) in enumerate(one.atom_indices.tolist()):
        ids = texts.tokens.ids[row_of[sequence]]
        before = tokenizer.decode(ids[max(0, position - CONTEXT) : position])
        token = tokenizer.decode(ids[position : position + 1])
        rows.append(AtomRow(latent, sequence, position, token, before))
    return rows


def summary(one: "Trained") -> dict[str, Any]:
    """What summary.json holds. No times: the same inputs give the same bytes."""
    fvu = {name: float(value) for name, value in one.judged.fvu._asdict().items()}
    found = {"layer": one.layer, "atoms": one.count, "tokens_seen": one.tokens}
    return found | one.judged._asdict() | {"fvu": fvu}


def draw(run: Run, rows: "pd.DataFrame") -> None:
    """Atoms, and FVU of each batch, against tokens read."""
    from model_diffs.core.figures import FILTERED, MLP, Panel, column_line, layer_figure

    atoms = column_line(rows, "atoms", "atoms", FILTERED, x="tokens")
    fvu = column_line(rows, "fvu", "each batch, before it could add atoms", MLP, x="tokens")
    panels = [
        Panel("Size of the dictionary", "atoms", [atoms], from_zero=True, xlabel="tokens seen"),
        Panel("Fit", "mean FVU", [fvu], from_zero=True, xlabel="tokens seen"),
    ]
    drawn = layer_figure(f"ITDA training: {title_of(run.planned)}", panels)
    drawn.axes[0].legend(loc="lower right")
    drawn.axes[1].legend(loc="upper right")
    run.figure("training", drawn)


def write(
    run: Run, one: "Trained", seconds: float, texts: "Reading", tokenizer: Any, options: Options
) -> None:
    """The folder of a dictionary that took `seconds` to train."""
    from model_diffs.dictionaries import reading
    from model_diffs.dictionaries.itda import ITDA

    found = metadata(one, texts, tokenizer, options)
    ITDA(one.atoms, one.atom_indices, found).save(run.path)
    run.table("atoms", atom_rows(one, texts, tokenizer))
    draw(run, run.table("training", one.rows))
    run.document("summary", summary(one))
    speed, judged = round(one.tokens / seconds), one.judged
    reading.describe(run, [options.model], texts, tokens_per_second=speed)
    dead = "unknown" if judged.dead_share is None else f"{judged.dead_share:.1%}"
    print(
        f"{run.planned.folder}: {one.count} atoms from {one.tokens} tokens, FVU "
        f"{judged.fvu.mean:.3f} [{judged.fvu.low:.3f}, {judged.fvu.high:.3f}] on the last "
        f"{judged.fvu_tokens}, share of dead atoms {dead} in {judged.dead_tokens}, {speed:,} "
        "tokens/s"
    )


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Train the dictionaries that are not complete, in one pass."""
    from model_diffs.activations.passes import Reader
    from model_diffs.dictionaries import reading, training
    from model_diffs.models import loading

    tokenizer = loading.load_tokenizer(options.model, options.trust_remote_code)
    keep_bos, skip_first = options.keep_bos, options.skip_first
    texts = reading.read(options.dataset, tokenizer, options, keep_bos, skip_first)
    reader = Reader(options.model, loading.load_for(options, options.model, options.device_map))
    layers = [planned.arguments["layer"] for planned in todo]
    with ExitStack() as folders:
        opened = [folders.enter_context(open_run(planned)) for planned in todo]
        trained, took = training.train(reader, texts, tokenizer.pad_token_id, layers, options)
        for run, one in zip(opened, trained, strict=True):
            write(run, one, took, texts, tokenizer, options)


if __name__ == "__main__":
    run_step(__name__)
