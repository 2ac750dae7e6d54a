"""What is written of a trained ITDA dictionary: its metadata, its atoms as text, a figure."""

from typing import Any, NamedTuple

from matplotlib.figure import Figure

from model_diffs.core.figures import FILTERED, MLP, Line, Panel, layer_figure
from model_diffs.dictionaries import itda_reading
from model_diffs.dictionaries.itda import ITDA
from model_diffs.dictionaries.itda_reading import Reading
from model_diffs.dictionaries.itda_training import Trained
from model_diffs.dictionaries.options import Training

# Tokens before an atom's own that tell a reader where it was found.
CONTEXT = 12


class AtomRow(NamedTuple):
    """A row of atoms.csv."""

    latent: int
    sequence: int
    """Row of the text in the data sets, one after the other."""
    position: int
    token: str
    before: str
    """The text up to the token."""


def metadata(
    one: Trained, reading: Reading, tokenizer: Any, model: str, options: Training
) -> dict[str, Any]:
    """The published keys, and what else tells the dictionary's data and criterion."""
    return {
        "lm_name": model,
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
        "steps": len(one.steps),
        "fvu_threshold": options.fvu_threshold if options.loss_threshold is None else None,
        "keep_bos": options.keep_bos,
        "skip_first": options.skip_first,
        "dataset_sha256": reading.sha256(),
        "tokenizer_sha256": itda_reading.tokenizer_sha256(tokenizer),
    }


def dictionary(one: Trained, described: dict[str, Any]) -> ITDA:
    """The trained dictionary with its metadata."""
    return ITDA(one.atoms, one.atom_indices, described)


def atom_rows(one: Trained, reading: Reading, tokenizer: Any) -> list[AtomRow]:
    """Where each atom was found, for readers."""
    row_of = {int(text): row for row, text in enumerate(reading.tokens.documents)}
    rows = []
    for latent, (sequence, position) in enumerate(one.atom_indices.tolist()):
        ids = reading.tokens.ids[row_of[sequence]]
        before = tokenizer.decode(ids[max(0, position - CONTEXT) : position])
        token = tokenizer.decode(ids[position : position + 1])
        rows.append(AtomRow(latent, sequence, position, token, before))
    return rows


def summary(one: Trained) -> dict[str, Any]:
    """What summary.json says. No times: the same inputs give the same bytes."""
    judged = one.judged
    return {
        "layer": one.layer,
        "atoms": len(one.atoms),
        "tokens_seen": one.steps[-1].tokens,
        "fvu": {"mean": judged.fvu, "low": judged.fvu_low, "high": judged.fvu_high},
        "fvu_tokens": judged.tokens,
        "dead_share": judged.dead_share,
        "dead_tokens": judged.dead_tokens,
    }


def line(one: Trained) -> str:
    """The result in a line."""
    judged = one.judged
    dead = "dead share unknown" if judged.dead_share is None else f"{judged.dead_share:.1%} dead"
    return (
        f"{len(one.atoms)} atoms from {one.steps[-1].tokens} tokens, FVU {judged.fvu:.3f} "
        f"[{judged.fvu_low:.3f}, {judged.fvu_high:.3f}] on the last {judged.tokens}, "
        f"{dead} in {judged.dead_tokens}, "
        f"{one.tokens_per_second:,.0f} tokens/s"
    )


def figure(one: Trained, title: str) -> Figure:
    """Atoms, and FVU of each batch, against tokens seen."""
    tokens = [float(step.tokens) for step in one.steps]
    atoms = Line("atoms", tokens, [float(step.atoms) for step in one.steps], FILTERED)
    fvu = Line("each batch, before it could add atoms", tokens, _fvu(one), MLP)
    panels = [
        Panel("Size of the dictionary", "atoms", [atoms], from_zero=True, xlabel="tokens seen"),
        Panel("Fit", "mean FVU", [fvu], from_zero=True, xlabel="tokens seen"),
    ]
    drawn = layer_figure(f"ITDA training: {title}", panels)
    for axes in drawn.axes:
        axes.legend(loc="lower right" if axes is drawn.axes[0] else "upper right")
    return drawn


def _fvu(one: Trained) -> list[float]:
    return [step.fvu for step in one.steps]
