"""One run of training, from the options of `unlearn.py` to a model folder."""

import dataclasses
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from model_diffs.core import provenance, tracking
from model_diffs.core.errors import BadInput
from model_diffs.core.folders import read_json
from model_diffs.core.methods import METHODS
from model_diffs.core.results import Run, is_main_process
from model_diffs.core.script import seed_everything
from model_diffs.data.questions import Question, load_questions
from model_diffs.data.texts import read_split, read_splits
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES, dtype_name, pick_device
from model_diffs.models.held import hold
from model_diffs.models.loading import load_model, load_narrow, load_tokenizer
from model_diffs.unlearning import interventions, sharding, until
from model_diffs.unlearning.checkpointing import resume_folder
from model_diffs.unlearning.data import Tokens, tokenise
from model_diffs.unlearning.losses import Loss, get_loss
from model_diffs.unlearning.measuring import accuracies, in_words
from model_diffs.unlearning.network import Network, check_head
from model_diffs.unlearning.optimizers import (
    attach_adapter,
    choose_trainable,
    freeze_unread,
    merge_adapter,
)
from model_diffs.unlearning.reference import state_splits
from model_diffs.unlearning.saving import check_space, save_model, stored_dtype
from model_diffs.unlearning.settings import Options, resolve
from model_diffs.unlearning.summary import model_card
from model_diffs.unlearning.trainer import Trainer

Measure = Callable[[dict[str, list[float]]], dict[str, float | None]]
"""Gets what keeps the NLL of each held-out text."""
# RMU's published coefficients are about this many times the norm of the frozen model's states.
AUTO_STEERING = 2.0


def make(options: Options, run: Run) -> None:
    """Train and save one model into `run`. Raises BadInput for what the options get wrong."""
    started = time.perf_counter()
    seed_everything(options.seed)
    base = Checkpoint.open(options.model)
    tokenizer = load_tokenizer(options.model, options.trust_remote_code)
    questions = load_questions(options.questions) if options.questions else []
    trainer = prepare(options, run, base, tokenizer)
    trainer.search = until.search_of(options.until, questions, trainer.network.model, tokenizer)
    if is_main_process():
        tracking.begin(run.planned.folder, run.planned.label, run.planned.arguments)
    accelerator, model = trainer.accelerator, trainer.network.model
    measure = partial(_measure, trainer, tokenizer, questions)
    record = train(trainer, options, run, base, measure)
    facts = provenance.process_facts()
    record["seconds"] = round(time.perf_counter() - started, 3)
    record |= {name: value for name, value in facts.items() if name.startswith("peak_")}
    weights = sharding.whole_weights(model) if trainer.sharded else None
    if accelerator.is_main_process:
        saved = DTYPES[record["saved_dtype"]]
        model = merge_adapter(trainer.adapter, saved) if trainer.adapter else model
        save_model(model, tokenizer, run.path, saved, weights)
        run.document("unlearning", record | {"packages": facts["packages"]})
        (run.path / "README.md").write_text(model_card(record), encoding="utf-8")
    given = (options.forget_text, options.retain_text, options.text, options.questions)
    others = [Checkpoint.open(one).files for one in (options.teacher, options.like) if one]
    run.reads(*base.files, *itertools.chain(*others), *filter(None, given))
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


# ── before training ───────────────────────────────────────────────────────────────────────────────


def prepare(options: Options, run: Run, base: Checkpoint, tokenizer: Any) -> Trainer:
    """Read, load and check everything. Raises BadInput before any time is spent on training."""
    splits = read_texts(options, tokenizer)
    loss = get_loss(options.method)
    shards = sharding.take_over(options)
    accelerator = _accelerator(options)
    options = _capped(options, loss, splits, accelerator.num_processes)
    # A model that is sharded may not fit into one device whole.
    place = torch.device("cpu") if shards else accelerator.device
    dtype = DTYPES["fp32" if options.dtype == "auto" else options.dtype]
    # What is not trained stays as it is stored; sharded weights must be of one dtype.
    narrow = options.dtype == "auto" and not shards
    load = load_narrow if narrow else partial(load_model, dtype=dtype)
    model: Any = load(options.model, place, trust_remote_code=options.trust_remote_code)
    weights = sum(p.numel() for p in model.parameters())
    check_space(run.path, weights, stored_dtype(base, options.save_dtype))
    network = Network(model)  # before an adapter renames the parts
    settings = resolve(options, loss, len(network.blocks))
    adapter = attach_adapter(model, options.lora_rank, options.seed)
    if adapter is None:
        choose_trainable(network, options.trainable, settings.layers)
        if loss.targets:
            freeze_unread(network, settings.layers)
    if narrow:
        hold(model)
    if shards:
        sharding.shard(network, accelerator.device, shards)
    alone = accelerator.num_processes == 1 and not (options.lora_rank or options.checkpoint_every)
    if shards and options.until:
        raise BadInput("--until cannot go back on divided weights: run it without FSDP")
    trainer = Trainer(
        network=network,
        intervention=interventions.of_method(loss.name, alone),
        rates=rates_of(options.like) if options.like else (),
        loss=loss,
        settings=settings,
        options=options,
        forget=splits["forget"],
        retain=splits["retain"],
        text=splits.get("text"),
        pad_id=tokenizer.pad_token_id,
        accelerator=accelerator,
        resume=resume_folder(run.planned.folder),
        arguments=dict(run.planned.arguments),
        adapter=adapter,
        observe=partial(tracking.log, run.planned.folder),
    )
    trainer.passage(check_head, trainer.batch("forget", [0]))
    _warn(trainer, options, dtype, stored_dtype(base, "base"))
    return trainer


def rates_of(like: str) -> list[float]:
    """The learning rate of each step that a model was trained for: what trains with them moves
    weights as strongly. BadInput for a model that `unlearn.py` did not train."""
    losses = (read_json(Path(like) / "unlearning.json") or {}).get("losses") or []
    if not losses:
        raise BadInput(f"--like {like}: no model that unlearn.py trained; its rates are not known")
    return [float(step["lr"]) for step in losses]


def read_texts(options: Options, tokenizer: Any) -> dict[str, Tokens]:
    """The splits by name, tokenised: `forget`, `retain`, and with --text `text`."""
    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    if options.text:
        splits.append(read_split(options.text, "text", options.max_samples, "--text"))
    cut = (options.max_length, options.eval_split, options.seed)
    return {split.name: tokenise(tokenizer, split, *cut) for split in splits}


def _capped(options: Options, loss: Loss, splits: Mapping[str, Tokens], processes: int) -> Options:
    """The options with batches that hold no text twice where one step sees all texts."""
    texts = max(len(splits.get(name, splits["retain"]).train) for name in loss.trains_on)
    most = -(-texts // (options.grad_accum_steps * processes))
    return dataclasses.replace(options, batch_size=min(options.batch_size, most))


def _accelerator(options: Options) -> Accelerator:
    device = pick_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if options.dtype == "auto" and device.type == "cuda" else "no",
        # Representation losses leave the blocks above their target without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _warn(trainer: Trainer, options: Options, trained: torch.dtype, stored: torch.dtype) -> None:
    """One line on stderr for each setting that changes what the run means."""
    accumulated, method = options.grad_accum_steps, options.method
    keeps = state_splits(trainer.loss, trainer.settings) and not options.lora_rank
    warnings = {
        f"--steering-coeff {options.steering_coeff} has no effect on {method}: a cosine has no "
        "scale": options.steering_coeff is not None and method in ("cb", "cb_lat"),
        f"a step averages {accumulated} batches, so there are {accumulated} times fewer steps at "
        "the same --lr": accumulated > 1,
        f"weights are trained in {dtype_name(trained)}: updates below its resolution are lost; "
        "--dtype auto keeps fp32 weights": trained != torch.float32,
        f"the base's states are kept in {dtype_name(stored)}, as its weights are: the retain term "
        "does not start at exactly zero": keeps and stored.itemsize < 4,
        "--eval-split 0 trains on every text and measures no NLL": options.eval_split == 0,
    }
    for line, applies in warnings.items():
        if applies and is_main_process():
            print(f"warning: {line}", file=sys.stderr, flush=True)


# ── training, with measurements before and after ──────────────────────────────────────────────────


def train(
    trainer: Trainer, options: Options, run: Run, base: Checkpoint, measure: Measure
) -> dict[str, Any]:
    """Train the model; returns what was done and measured, for unlearning.json."""
    trainer.leave_out_sink()
    texts: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    before, norms = measure(texts["before"]), trainer.state_norms()
    if norms and not trainer.settings.steering:
        steering = tuple(AUTO_STEERING * norm for norm in norms["forget"])
        trainer.settings = dataclasses.replace(trainer.settings, steering=steering)
    if options.method == "rmu":
        trainer.say(f"steering coefficient per block: {trainer.settings.steering}")
    trainer.train(trainer.make_reference(stored_dtype(base, "base"), run.path))
    for file in run.path.glob("reference_*.bin"):
        file.unlink()
    after, norms_after = measure(texts["after"]), trainer.state_norms()
    trainer.say(f"before: {in_words(before)}\nafter:  {in_words(after)}")
    trained = [p.numel() for p in trainer.network.parameters() if p.requires_grad]
    return {
        "method": options.method,
        "says": METHODS[options.method].says,
        "arguments": dict(run.planned.arguments),
        "settings": dataclasses.asdict(trainer.settings),
        "steps": len(trainer.steps_log),
        "before": before,
        "after": after,
        "held_out_NLL": texts,
        "hidden_norms": {"before": norms, "after": norms_after},
        "training_seconds": round(trainer.seconds, 3),
        "losses": [log._asdict() for log in trainer.steps_log],
        "evaluations": trainer.evaluations,
        "until": trainer.search.record(),
        "base": options.model,
        "texts": {name: split.facts for name, split in trainer.splits.items()},
        "trained_weights": sum(trained),
        "device": str(trainer.accelerator.device),
        "weights_dtype": "fp32" if options.dtype == "auto" else options.dtype,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "processes": trainer.accelerator.num_processes,
        "sharded": trainer.sharded,
        "saved_dtype": dtype_name(stored_dtype(base, options.save_dtype)),
    }


def _measure(
    trainer: Trainer, tokenizer: Any, questions: list[Question], kept: dict[str, list[float]]
) -> dict[str, float | None]:
    found = trainer.evaluate(kept)
    # Sharded weights come together only where all processes make the pass.
    if questions and (trainer.accelerator.is_main_process or trainer.sharded):
        found |= trainer.network(lambda one: accuracies(one.model, tokenizer, questions))
    trainer.accelerator.wait_for_everyone()
    return found
