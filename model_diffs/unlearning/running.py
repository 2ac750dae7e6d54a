"""One unlearning run, from the options of `unlearn.py` to a model folder."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from model_diffs.core import provenance
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import METHODS
from model_diffs.core.results import Run, is_main_process
from model_diffs.core.script import seed_everything
from model_diffs.data.questions import Question, load_questions
from model_diffs.data.texts import check_disjoint, read_split
from model_diffs.evaluation import scoring
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES, dtype_name, pick_device
from model_diffs.models.loading import load_model, load_tokenizer
from model_diffs.unlearning import sharding
from model_diffs.unlearning.adapters import Adapter
from model_diffs.unlearning.checkpointing import resume_folder
from model_diffs.unlearning.data import tokenise
from model_diffs.unlearning.losses import get_loss
from model_diffs.unlearning.network import Network, check_head
from model_diffs.unlearning.optimizers import choose_trainable
from model_diffs.unlearning.reference import make_reference, state_splits
from model_diffs.unlearning.saving import check_space, model_card, save_model, stored_dtype
from model_diffs.unlearning.settings import Options, automatic_steering, resolve
from model_diffs.unlearning.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run works with, after every check of its options."""

    options: Options
    run: Run
    base: Checkpoint
    questions: list[Question]
    shards: Any
    """accelerate's settings of a sharded run, or None."""
    tokenizer: Any
    model: Any
    adapter: Adapter | None
    trained: int
    """Weights that are trained."""
    trainer: Trainer


def unlearn(options: Options, run: Run) -> None:
    """Train and save one model into `run`. Raises BadInput for what the options get wrong."""
    started = time.perf_counter()
    seed_everything(options.seed)
    job = prepare(options, run)
    accelerator = job.trainer.accelerator
    record = train(job) | _circumstances(job)
    facts = provenance.process_facts()
    record["seconds"] = round(time.perf_counter() - started, 3)
    memory = ("peak_memory_bytes", "peak_device_memory_bytes")
    record |= {name: facts[name] for name in memory if name in facts}
    weights = sharding.whole_weights(job.model) if job.shards else None
    if accelerator.is_main_process:
        model = job.adapter.wrapped.merge_and_unload() if job.adapter else job.model
        save_model(model, job.tokenizer, run.path, DTYPES[record["saved_dtype"]], weights)
        run.document("unlearning", record | {"packages": facts["packages"]})
        (run.path / "README.md").write_text(model_card(record), encoding="utf-8")
    run.reads(*job.base.files, options.forget_text, options.retain_text)
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


# ── before training ───────────────────────────────────────────────────────────────────────────────


def prepare(options: Options, run: Run) -> Job:
    """Read, load and check everything. Raises BadInput before any time is spent on training."""
    loss = get_loss(options.method)
    texts = [
        read_split(path, name, options.max_samples)
        for name, path in (("forget", options.forget_text), ("retain", options.retain_text))
    ]
    check_disjoint(*texts)
    questions = load_questions(options.questions) if options.questions else []
    base = Checkpoint.open(options.model)
    shards = sharding.take_over(options)
    accelerator = _accelerator(options)
    tokenizer = load_tokenizer(options.model, options.trust_remote_code)
    # A model that is sharded may not fit into one device whole.
    place = torch.device("cpu") if shards else accelerator.device
    weights_dtype = DTYPES["fp32" if options.dtype == "auto" else options.dtype]
    model: Any = load_model(options.model, place, weights_dtype, options.trust_remote_code)
    check_space(run.path, model, stored_dtype(base, options.save_dtype))
    network = Network(model)  # before an adapter renames the parts
    adapter = Adapter.attach(model, options.lora_rank, options.seed)
    settings = resolve(options, loss, len(network.blocks))
    trained = (
        adapter.size if adapter else choose_trainable(network, options.trainable, settings.layers)
    )
    splits = [
        tokenise(tokenizer, split, options.max_length, options.eval_split, options.seed)
        for split in texts
    ]
    longest = max(len(ids) for split in splits for ids in (*split.train, *split.held_out))
    if network.positions and longest > network.positions:
        raise BadInput(
            f"--max-length: texts of {longest} tokens, the model takes {network.positions}"
        )
    if shards:
        sharding.shard(network, accelerator.device, shards)
    trainer = Trainer(
        network=network,
        loss=loss,
        settings=settings,
        options=options,
        forget=splits[0],
        retain=splits[1],
        pad_id=tokenizer.pad_token_id,
        accelerator=accelerator,
        resume=resume_folder(run.planned.folder),
        arguments=dict(run.planned.arguments),
    )
    trainer.passage(check_head, trainer.batch("forget", [0]))
    _warn(trainer, options, weights_dtype, stored_dtype(base, "base"))
    return Job(
        options=options,
        run=run,
        base=base,
        questions=questions,
        shards=shards,
        tokenizer=tokenizer,
        model=model,
        adapter=adapter,
        trained=trained,
        trainer=trainer,
    )


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


def train(job: Job) -> dict[str, Any]:
    """Train the model of a job; returns what was measured, for unlearning.json."""
    trainer, run, method = job.trainer, job.run, job.options.method
    before = _measure(job)
    norms = _norms(trainer, "before")
    if norms and not trainer.settings.steering:
        steering = automatic_steering(norms["forget"])
        trainer.settings = dataclasses.replace(trainer.settings, steering=steering)
    if method == "rmu":
        trainer.say(f"steering coefficient per block: {_list(trainer.settings.steering)}")
    adapter_off = job.adapter.wrapped.disable_adapter if job.adapter else None
    trainer.train(make_reference(trainer, stored_dtype(job.base, "base"), run.path, adapter_off))
    for file in run.path.glob("reference_*.bin"):
        file.unlink()
    after = _measure(job)
    trainer.say(f"before: {before}")
    trainer.say(f"after:  {after}")
    return {
        "method": method,
        "says": METHODS[method].says,
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


def _circumstances(job: Job) -> dict[str, Any]:
    """What was trained on what, for unlearning.json and the card."""
    trainer, options = job.trainer, job.options
    return {
        "base": options.model,
        "texts": {"forget": trainer.forget.facts, "retain": trainer.retain.facts},
        "trained_weights": job.trained,
        "device": str(trainer.accelerator.device),
        "weights_dtype": "fp32" if options.dtype == "auto" else options.dtype,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "processes": trainer.accelerator.num_processes,
        "sharded": job.shards is not None,
        "saved_dtype": dtype_name(stored_dtype(job.base, options.save_dtype)),
    }


def _measure(job: Job) -> dict[str, float | None]:
    trainer = job.trainer
    found = trainer.evaluate().facts()
    # Sharded weights come together only where all processes make the pass.
    if job.questions and (trainer.accelerator.is_main_process or job.shards):
        given = trainer.network(_score, job.tokenizer, job.questions)
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
    if not trainer.loss.targets:
        return None
    norms = trainer.state_norms()
    for split, values in norms.items():
        blocks = ", ".join(map(str, trainer.settings.layers))
        trainer.say(f"mean ‖h‖ after blocks {blocks}, {split}, {when}: {_list(values)}")
    return norms


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
