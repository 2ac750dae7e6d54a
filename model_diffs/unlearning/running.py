"""One unlearning run, from the options of `unlearn.py` to a model folder."""

import argparse
import dataclasses
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from model_diffs import arguments, knowledge
from model_diffs.checkpoints import Checkpoint
from model_diffs.devices import DTYPES, dtype_name, pick_device
from model_diffs.errors import BadInput
from model_diffs.models import load_model, load_tokenizer
from model_diffs.runs import Run
from model_diffs.texts import Split, check_disjoint, read_split
from model_diffs.unlearning import Method, get_method
from model_diffs.unlearning.adapters import Adapter
from model_diffs.unlearning.checkpointing import resume_folder
from model_diffs.unlearning.data import Tokens, tokenise
from model_diffs.unlearning.network import Network, check_head
from model_diffs.unlearning.optimizers import choose_trainable
from model_diffs.unlearning.preparing import (
    automatic_steering,
    make_reference,
    state_norms,
    state_splits,
)
from model_diffs.unlearning.saving import check_space, model_card, save_model, stored_dtype
from model_diffs.unlearning.settings import resolve
from model_diffs.unlearning.trainer import Schedule, Trainer

DEFAULT_STEERING = 20.0


def unlearn(options: argparse.Namespace, run: Run) -> None:
    """Train and save one model into `run`. Raises BadInput for what the options get wrong."""
    started = time.perf_counter()
    arguments.seed_everything(options.seed)
    method = get_method(options.method)
    forget, retain = _read(options)
    questions = knowledge.load_questions(options.questions) if options.questions else None
    base = Checkpoint.open(options.model)
    accelerator, weights_dtype = _engine(options)
    tokenizer = load_tokenizer(options.model, options.trust_remote_code)
    model: Any = load_model(
        options.model, accelerator.device, weights_dtype, options.trust_remote_code
    )
    save_dtype = stored_dtype(base, options.save_dtype)
    check_space(run.path, model, save_dtype)
    network = Network(model)  # before an adapter gives the parts other names
    adapter = Adapter.attach(model, options.lora_rank, options.seed)
    settings = resolve(_with_steering(options, method), method, len(network.blocks))
    trained = (
        adapter.size if adapter else choose_trainable(network, options.trainable, settings.layers)
    )
    splits = [
        tokenise(tokenizer, split, options.max_length, options.eval_split, options.seed)
        for split in (forget, retain)
    ]
    _check_lengths(model, splits)
    trainer = Trainer(
        network,
        method,
        settings,
        schedule(options, accelerator.device),
        splits[0],
        splits[1],
        tokenizer.pad_token_id,
        accelerator,
        resume_folder(run.planned.folder),
        dict(run.planned.arguments),
    )
    check_head(network, trainer.batch("forget", [0]))
    _warn(trainer, options, base, weights_dtype, save_dtype)
    record = _train(
        trainer, options, run, tokenizer, questions, stored_dtype(base, "base"), adapter
    )
    record |= {
        "base": options.model,
        "texts": {"forget": splits[0].facts, "retain": splits[1].facts},
        "trained_weights": trained,
        "device": str(accelerator.device),
        "weights_dtype": dtype_name(weights_dtype),
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "saved_dtype": dtype_name(save_dtype),
        "seconds": round(time.perf_counter() - started, 3),
        **_peak_memory(),
    }
    if accelerator.is_main_process:
        _save(run, adapter.merged() if adapter else model, tokenizer, save_dtype, record)
    run.reads(*base.files, forget.path, retain.path)
    if options.questions:
        run.reads(options.questions)
    run.record(
        models={"base": base.identity()},
        texts=record["texts"],
        device=record["device"],
        dtype=record["weights_dtype"],
        seed=options.seed,
        tokens=trainer.tokens,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(resume_folder(run.planned.folder), ignore_errors=True)


# ── what is given ─────────────────────────────────────────────────────────────────────────────────


def _read(options: argparse.Namespace) -> tuple[Split, Split]:
    try:
        forget = read_split(options.forget_data, "forget", options.max_samples)
        retain = read_split(options.retain_data, "retain", options.max_samples)
    except BadInput as error:
        # Everywhere else these options end in -text.
        message = str(error).replace("--forget-text", "--forget-data")
        raise BadInput(message.replace("--retain-text", "--retain-data")) from error
    check_disjoint(forget, retain)
    return forget, retain


def _engine(options: argparse.Namespace) -> tuple[Accelerator, torch.dtype]:
    """accelerate on the device, and the dtype of the weights while they are trained."""
    device = pick_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mixed = "bf16" if options.dtype == "auto" and device.type == "cuda" else "no"
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed,
        # Representation losses leave the blocks above their target without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    return accelerator, DTYPES["fp32" if options.dtype == "auto" else options.dtype]


def schedule(options: argparse.Namespace, device: torch.device) -> Schedule:
    """The trainer's numbers from the options."""
    fields = {f.name for f in dataclasses.fields(Schedule)}
    values = {k: v for k, v in vars(options).items() if k in fields}
    if values["gradient_checkpointing"] is None:
        values["gradient_checkpointing"] = device.type == "cuda"
    return Schedule(**values)


def _with_steering(options: argparse.Namespace, method: Method) -> argparse.Namespace:
    given = options.steering_coeff
    if given is not None and method.name in ("cb", "cb_lat"):
        print(f"--steering-coeff {given} has no effect on {method.name}: a cosine has no scale")
    auto = given == "auto" and method.name == "rmu"
    resolved = "auto" if auto else DEFAULT_STEERING if given in (None, "auto") else float(given)
    return argparse.Namespace(**{**vars(options), "steering_coeff": resolved})


def _check_lengths(model: Any, splits: list[Tokens]) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(ids) for split in splits for ids in (*split.train, *split.held_out))
    if limit and longest > limit:
        raise BadInput(f"--max-length: texts of {longest} tokens, the model takes {limit}")


def _warn(
    trainer: Trainer,
    options: argparse.Namespace,
    base: Checkpoint,
    weights_dtype: torch.dtype,
    save_dtype: torch.dtype,
) -> None:
    """One line for each setting that changes what the run means."""
    if options.grad_accum_steps > 1:
        trainer.say(
            f"warning: a step averages {options.grad_accum_steps} batches, so there are "
            f"{options.grad_accum_steps} times fewer steps at the same --lr"
        )
    if weights_dtype != torch.float32:
        trainer.say(
            f"warning: weights are trained in {dtype_name(weights_dtype)}: updates below its "
            "resolution are lost; --dtype auto keeps fp32 weights"
        )
    cached = stored_dtype(base, "base")
    keeps = state_splits(trainer.method, trainer.settings) and not options.lora_rank
    if keeps and cached.itemsize < 4:
        trainer.say(
            f"warning: the base's states are kept in {dtype_name(cached)}, as its weights are: "
            "the retain term does not start at exactly zero"
        )
    if options.eval_split == 0:
        trainer.say("warning: --eval-split 0 trains on every text and measures no NLL")


# ── what is done ──────────────────────────────────────────────────────────────────────────────────


def _train(
    trainer: Trainer,
    options: argparse.Namespace,
    run: Run,
    tokenizer: Any,
    questions: list[knowledge.Question] | None,
    cache_dtype: torch.dtype,
    adapter: Adapter | None,
) -> dict[str, Any]:
    before = _measure(trainer, tokenizer, questions)
    norms = _norms(trainer, "before")
    if norms and not trainer.settings.steering:
        steering = automatic_steering(norms["forget"])
        trainer.settings = dataclasses.replace(trainer.settings, steering=steering)
    if trainer.method.name == "rmu":
        trainer.say(f"steering coefficient per block: {_list(trainer.settings.steering)}")
    reference = make_reference(
        trainer, cache_dtype, run.path, adapter.switched_off if adapter else None
    )
    trainer.train(reference)
    for file in run.path.glob("reference_*.bin"):
        file.unlink()
    after = _measure(trainer, tokenizer, questions)
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


def _measure(
    trainer: Trainer, tokenizer: Any, questions: list[knowledge.Question] | None
) -> dict[str, float | None]:
    found = trainer.evaluate().facts()
    if questions and trainer.accelerator.is_main_process:
        given = knowledge.score(trainer.network.model, tokenizer, questions)
        for one in knowledge.accuracies(given):
            name = one.domain if one.fold is None else f"{one.domain}_{one.fold}"
            found |= {
                f"{name}_accuracy": one.mean,
                f"{name}_accuracy_low": one.low,
                f"{name}_accuracy_high": one.high,
            }
    trainer.accelerator.wait_for_everyone()
    return found


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


def _save(run: Run, model: Any, tokenizer: Any, dtype: torch.dtype, record: dict[str, Any]) -> None:
    from model_diffs.provenance import process_facts

    save_model(model, tokenizer, run.path, dtype)
    packages = process_facts()["packages"]
    run.document("unlearning", {**record, "packages": packages})
    (Path(run.path) / "README.md").write_text(model_card(record), encoding="utf-8")
