"""One unlearning run, from the options of `unlearn.py` to a model folder."""

import argparse
import dataclasses
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model_diffs.core import arguments
from model_diffs.core.results import Run
from model_diffs.data.questions import Question, load_questions
from model_diffs.data.texts import Split
from model_diffs.evaluation import scoring
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import dtype_name
from model_diffs.models.loading import load_model, load_tokenizer
from model_diffs.unlearning import from_options, get_method, sharding
from model_diffs.unlearning.adapters import Adapter
from model_diffs.unlearning.checkpointing import resume_folder
from model_diffs.unlearning.data import tokenise
from model_diffs.unlearning.network import Network, check_head
from model_diffs.unlearning.optimizers import choose_trainable
from model_diffs.unlearning.preparing import (
    automatic_steering,
    make_reference,
    state_norms,
)
from model_diffs.unlearning.saving import check_space, model_card, save_model, stored_dtype
from model_diffs.unlearning.settings import resolve
from model_diffs.unlearning.sharding import is_sharded
from model_diffs.unlearning.trainer import Trainer


class _Job(NamedTuple):
    """What a run works with, once everything that the options can get wrong has been checked."""

    base: Checkpoint
    forget: Split
    retain: Split
    questions: list[Question] | None
    shards: Any
    """accelerate's settings of a sharded run, or None."""
    weights_dtype: torch.dtype
    save_dtype: torch.dtype
    tokenizer: Any
    model: Any
    adapter: Adapter | None
    trained: int
    """Weights that are trained."""
    trainer: Trainer


def unlearn(options: argparse.Namespace, run: Run) -> None:
    """Train and save one model into `run`. Raises BadInput for what the options get wrong."""
    started = time.perf_counter()
    arguments.seed_everything(options.seed)
    job = _prepare(options, run)
    record = _train(job, run) | _circumstances(job, options)
    record |= {"seconds": round(time.perf_counter() - started, 3), **_peak_memory()}
    accelerator = job.trainer.accelerator
    weights = sharding.whole_weights(job.model) if job.shards else None
    if accelerator.is_main_process:
        model = job.adapter.merged() if job.adapter else job.model
        _save(run, model, job.tokenizer, job.save_dtype, record, weights)
    run.reads(*job.base.files, job.forget.path, job.retain.path)
    if options.questions:
        run.reads(options.questions)
    run.record(
        models={"base": job.base.identity()},
        texts=record["texts"],
        device=record["device"],
        dtype=record["weights_dtype"],
        seed=options.seed,
        tokens=job.trainer.tokens,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(resume_folder(run.planned.folder), ignore_errors=True)


def _prepare(options: argparse.Namespace, run: Run) -> _Job:
    method = get_method(options.method)
    forget, retain = from_options.read(options)
    questions = load_questions(options.questions) if options.questions else None
    base = Checkpoint.open(options.model)
    shards = from_options.sharding_plan(options)
    accelerator, weights_dtype = from_options.engine(options)
    tokenizer = load_tokenizer(options.model, options.trust_remote_code)
    # What is cut into shards may not fit into one device whole.
    place = torch.device("cpu") if shards else accelerator.device
    model: Any = load_model(options.model, place, weights_dtype, options.trust_remote_code)
    save_dtype = stored_dtype(base, options.save_dtype)
    check_space(run.path, model, save_dtype)
    network = Network(model)  # before an adapter gives the parts other names
    adapter = Adapter.attach(model, options.lora_rank, options.seed)
    settings = resolve(from_options.with_steering(options, method), method, len(network.blocks))
    trained = (
        adapter.size if adapter else choose_trainable(network, options.trainable, settings.layers)
    )
    splits = [
        tokenise(tokenizer, split, options.max_length, options.eval_split, options.seed)
        for split in (forget, retain)
    ]
    from_options.check_lengths(model, splits)
    if shards:
        sharding.shard(network, accelerator.device, shards)
    trainer = Trainer(
        network,
        method,
        settings,
        from_options.schedule(options, accelerator.device),
        splits[0],
        splits[1],
        tokenizer.pad_token_id,
        accelerator,
        resume_folder(run.planned.folder),
        dict(run.planned.arguments),
    )
    trainer.passage(check_head, trainer.batch("forget", [0]))
    from_options.warn_of(trainer, options, base, weights_dtype)
    return _Job(
        *(base, forget, retain, questions, shards, weights_dtype, save_dtype),
        *(tokenizer, model, adapter, trained, trainer),
    )


# ── what is done ──────────────────────────────────────────────────────────────────────────────────


def _train(job: _Job, run: Run) -> dict[str, Any]:
    trainer, adapter = job.trainer, job.adapter
    before = _measure(trainer, job.tokenizer, job.questions)
    norms = _norms(trainer, "before")
    if norms and not trainer.settings.steering:
        steering = automatic_steering(norms["forget"])
        trainer.settings = dataclasses.replace(trainer.settings, steering=steering)
    if trainer.method.name == "rmu":
        trainer.say(f"steering coefficient per block: {_list(trainer.settings.steering)}")
    reference = make_reference(
        trainer,
        stored_dtype(job.base, "base"),
        run.path,
        adapter.switched_off if adapter else None,
    )
    trainer.train(reference)
    for file in run.path.glob("reference_*.bin"):
        file.unlink()
    after = _measure(trainer, job.tokenizer, job.questions)
    trainer.say(f"before: {before}")
    trainer.say(f"after:  {after}")
    return {
        "method": trainer.method.name,
        "says": trainer.method.says,
        "arguments": dict(run.planned.arguments),
        "settings": dataclasses.asdict(trainer.settings),
        "steps": len(trainer.steps),
        "before": before,
        "after": after,
        "hidden_norms": {"before": norms, "after": _norms(trainer, "after")},
        "training_seconds": round(trainer.seconds, 3),
        "losses": [log._asdict() for log in trainer.steps_log],
        "evaluations": trainer.evaluations,
    }


def _circumstances(job: _Job, options: argparse.Namespace) -> dict[str, Any]:
    """What was trained on what, for unlearning.json and the card."""
    trainer = job.trainer
    return {
        "base": options.model,
        "texts": {"forget": trainer.forget.facts, "retain": trainer.retain.facts},
        "trained_weights": job.trained,
        "device": str(trainer.accelerator.device),
        "weights_dtype": dtype_name(job.weights_dtype),
        "mixed_precision": trainer.accelerator.mixed_precision,
        "processes": trainer.accelerator.num_processes,
        "sharded": job.shards is not None,
        "saved_dtype": dtype_name(job.save_dtype),
    }


def _measure(
    trainer: Trainer, tokenizer: Any, questions: list[Question] | None
) -> dict[str, float | None]:
    found = trainer.evaluate().facts()
    # Sharded weights come together only where all processes make the pass.
    if questions and (trainer.accelerator.is_main_process or is_sharded(trainer.network)):
        given = trainer.network(_score, tokenizer, questions)
        for one in scoring.accuracies(given):
            name = one.domain if one.fold is None else f"{one.domain}_{one.fold}"
            found |= {
                f"{name}_accuracy": one.mean,
                f"{name}_accuracy_low": one.low,
                f"{name}_accuracy_high": one.high,
            }
    trainer.accelerator.wait_for_everyone()
    return found


def _score(network: Network, tokenizer: Any, questions: list[Question]) -> list[scoring.Answer]:
    return scoring.score(network.model, tokenizer, questions)


def _norms(trainer: Trainer, when: str) -> dict[str, list[float]] | None:
    if not trainer.method.targets:
        return None
    norms = state_norms(trainer)
    for split, values in norms.items():
        blocks = ", ".join(map(str, trainer.settings.layers))
        trainer.say(f"mean ‖h‖ after blocks {blocks}, {split}, {when}: {_list(values)}")
    return norms


def _list(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _peak_memory() -> dict[str, int]:
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        found["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _save(
    run: Run,
    model: Any,
    tokenizer: Any,
    dtype: torch.dtype,
    record: dict[str, Any],
    weights: dict[str, torch.Tensor] | None,
) -> None:
    from model_diffs.core.provenance import process_facts

    save_model(model, tokenizer, run.path, dtype, weights)
    packages = process_facts()["packages"]
    run.document("unlearning", {**record, "packages": packages})
    (Path(run.path) / "README.md").write_text(model_card(record), encoding="utf-8")
