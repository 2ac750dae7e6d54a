"""One run of a method that edits stored weights, from the options of `unlearn.py` to a folder.

Weights are read and written one tensor at a time; models are loaded for what is measured alone.
"""

import gc
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model_diffs.core import provenance
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import METHODS
from model_diffs.core.results import Run, is_main_process
from model_diffs.core.script import seed_everything
from model_diffs.data.questions import Question, load_questions
from model_diffs.models.checkpoints import Checkpoint, lockstep
from model_diffs.models.devices import DTYPES, dtype_name, pick_device
from model_diffs.models.files import CONFIG
from model_diffs.models.loading import load_model, load_tokenizer
from model_diffs.unlearning.data import Tokens
from model_diffs.unlearning.edits import EDITS, Edit, frobenius
from model_diffs.unlearning.measuring import accuracies, in_words, nlls
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.running import read_texts
from model_diffs.unlearning.saving import check_space, stored_dtype, write_weights
from model_diffs.unlearning.settings import Options
from model_diffs.unlearning.summary import model_card

WEIGHTS = "model.safetensors"
# Rounding that changes ‖ΔW‖ by more than this is said.
LARGE = 0.01


class Change(NamedTuple):
    """‖ΔW‖_F of one matrix."""

    name: str
    wanted: float
    """As the method asks for it: with --like, that model's."""
    stored: float
    """Of the new one, after rounding to the dtype that it is stored in."""


def make(options: Options, run: Run) -> None:
    """Edit the base's weights into a model in `run`. Raises BadInput for what cannot be done.

    Of several processes the first does it all: no pass is long.
    """
    if not is_main_process():
        return
    started = time.perf_counter()
    seed_everything(options.seed)
    base = Checkpoint.open(options.model)
    like = Checkpoint.open(options.like or options.model)
    tokenizer = load_tokenizer(options.model, options.trust_remote_code)
    questions = load_questions(options.questions) if options.questions else []
    splits = read_texts(options, tokenizer)
    check_space(run.path, base.weights, stored_dtype(base, options.save_dtype))
    changes = _write(base, like, options, run)
    editing_seconds = time.perf_counter() - started
    tokenizer.save_pretrained(run.path)
    texts: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    before, after = (
        _measured(options, model, splits, tokenizer, questions, kept)
        for model, kept in zip((options.model, str(run.path)), texts.values(), strict=True)
    )
    print(f"before: {in_words(before)}\nafter:  {in_words(after)}", flush=True)
    facts = provenance.process_facts()
    record = {
        **_constants(options, base),
        "arguments": dict(run.planned.arguments),
        "before": before,
        "after": after,
        "held_out_NLL": texts,
        "texts": {name: split.facts for name, split in splits.items()},
        "matrices": [change._asdict() for change in changes],
        "training_seconds": round(editing_seconds, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "packages": facts["packages"],
        **{name: value for name, value in facts.items() if name.startswith("peak_")},
    }
    run.document("unlearning", record)
    (run.path / "README.md").write_text(model_card(record), encoding="utf-8")
    given = (options.forget_text, options.retain_text, options.questions)
    run.reads(*base.files, *like.files, *filter(None, given))
    run.record(
        models={"base": base.identity(), **({"like": like.identity()} if options.like else {})},
        texts=record["texts"],
        device=record["device"],
        dtype=record["weights_dtype"],
        seed=options.seed,
    )


def _constants(options: Options, base: Checkpoint) -> dict[str, Any]:
    """What unlearning.json says of every model that is edited: the keys of one that is trained."""
    return {
        "method": options.method,
        "says": METHODS[options.method].says,
        "settings": {
            name: getattr(options, name) for name in (*METHODS[options.method].inputs, "seed")
        },
        "steps": 0,
        "hidden_norms": {"before": None, "after": None},
        "losses": [],
        "evaluations": [],
        "base": options.model,
        "trained_weights": 0,
        "device": str(pick_device(options.device)),
        "weights_dtype": "fp32" if options.dtype == "auto" else options.dtype,
        "mixed_precision": "no",
        "processes": 1,
        "sharded": False,
        "saved_dtype": dtype_name(stored_dtype(base, options.save_dtype)),
    }


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


def _write(base: Checkpoint, like: Checkpoint, options: Options, run: Run) -> list[Change]:
    """Write weights and configuration; returns the change of each matrix."""
    for checkpoint in (base, like):
        checkpoint.check_vectors()
    chosen = None if options.save_dtype == "base" else DTYPES[options.save_dtype]
    dtypes = {name: chosen or base.tensor(name).dtype for name in base.entries}
    shapes = {name: (entry.shape, dtypes[name]) for name, entry in base.entries.items()}
    changes: list[Change] = []
    edited = _edited(base, like, dtypes, options, changes)
    matrices = {matrix.tensor for matrix in base.matrices()}
    vectors = ((n, base.tensor(n).to(dtypes[n])) for n in base.entries if n not in matrices)
    write_weights(run.path / WEIGHTS, shapes, itertools.chain(edited, vectors))
    _check(changes, options)
    config = json.loads((base.folder / CONFIG).read_text(encoding="utf-8"))
    if chosen is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(chosen).removeprefix("torch.")
    (run.path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    generation = base.folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, run.path / generation.name)
    return changes


def _edited(
    base: Checkpoint,
    like: Checkpoint,
    dtypes: Mapping[str, torch.dtype],
    options: Options,
    changes: list[Change],
) -> Iterator[tuple[str, Tensor]]:
    """Each stored tensor that holds matrices, edited; what was changed is added to `changes`."""
    compute: Edit = EDITS[options.method]
    every = lockstep(base, [like], base.matrices())
    for name, group in itertools.groupby(every, key=lambda one: one[0].tensor):
        whole = base.tensor(name).to(dtypes[name], copy=True)
        for matrix, stored, others in group:
            W = stored.float()
            ((_, stored_like),) = others
            dW = stored_like.float() - W
            change = compute(matrix, W, dW, options)
            matrix.take(whole).copy_(W + change)
            kept = frobenius(matrix.take(whole).float() - W)
            changes.append(Change(matrix.name, frobenius(change), kept))
        yield name, whole


def _check(changes: list[Change], options: Options) -> None:
    """Refuse a --like that changes nothing; say where rounding changed the norms."""
    if options.like and not any(change.wanted for change in changes):
        raise BadInput(
            f"--like {options.like} has the matrices of {options.model}: name a model that differs"
        )
    off = [one for one in changes if abs(one.stored - one.wanted) > LARGE * one.wanted]
    total, stored = (
        sum(getattr(change, key) ** 2 for change in changes) ** 0.5 for key in ("wanted", "stored")
    )
    source = options.like or "fp32"
    print(f"‖ΔW‖ {stored:.6g} over {len(changes)} matrices, {total:.6g} in {source}")
    if off:
        print(
            f"warning: rounding changes ‖ΔW‖ of {len(off)} of {len(changes)} matrices by more than "
            f"{LARGE:.0%}, such as {off[0].name}; --save-dtype fp32 keeps it",
            file=sys.stderr,
            flush=True,
        )


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


def _measured(
    options: Options,
    name: str,
    splits: Mapping[str, Tokens],
    tokenizer: Any,
    questions: list[Question],
    kept: dict[str, list[float]],
) -> dict[str, float | None]:
    """What a trained model is measured by before and after; the model is loaded for it alone."""
    dtype = DTYPES["fp32" if options.dtype == "auto" else options.dtype]
    model = load_model(name, pick_device(options.device), dtype, options.trust_remote_code)
    size = 2 * options.batch_size
    found = nlls(Network(model), splits, tokenizer.pad_token_id, size, kept=kept)
    found |= accuracies(model, tokenizer, questions) if questions else {}
    del model
    gc.collect()
    return found
