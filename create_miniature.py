"""Step 0. What does an intervention change, where the truth is known? Makes the embedded study.

A fictional world is written down with and without its hazardous facts, and small GPT-NeoX models
are trained on it: the base, which knows everything; the filtered model, which never read a hazard;
and one like the base from another initialisation. All are then asked about every fact, in
four-choice questions.

    uv run create_miniature.py
    uv run create_miniature.py --texts-only --world-seed 7 --data-dir data/miniature7

Outputs: data/miniature/ (corpora, forget and retain texts, hazard texts by fold, benign texts,
questions.jsonl, tokenizer.json), models/miniature-{base,filtered,reseeded}/, each an ordinary
transformers folder with a model card; scrambled, whose hazards are dealt anew, and
filtered_reseeded, from another initialisation than filtered, with --models; with --sae also
models/miniature-sae/, a sparse autoencoder per block of the base.
"""

import dataclasses
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model_diffs.core import results, step
from model_diffs.core.errors import BadInput
from model_diffs.core.options import option, recorded
from model_diffs.core.parent import end_with_parent
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import run_stages, run_step, seed_everything
from model_diffs.core.step import Step
from model_diffs.miniature.recipe import Recipe, SaeRecipe

STEP = Step(
    number=0,
    folder="miniature",
    question="What does an intervention change, where the truth is known?",
    scope="other",
)


TEXTS, SAE = "miniature texts", "miniature-sae"  # labels of what is no model

# Of each model: its corpus, and what its training seed is beyond --seed.
MODELS = {
    "base": ("base", 0),
    "filtered": ("filtered", 0),
    "reseeded": ("base", 1_000_003),
    "scrambled": ("scrambled", 0),
    "filtered_reseeded": ("filtered", 1_000_003),
}


def _known(name: str) -> None:
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")


@dataclass(frozen=True, kw_only=True)
class Options(Recipe):
    """Device and output."""

    models: tuple[str, ...] = option(
        ("base", "filtered", "reseeded"), "which to train", check=_known, recorded=False
    )
    registration: str | None = option(
        None,
        "lock the world: nothing attacks it until this document is registered and its predictors "
        "are written (docs/brittleness.md)",
        recorded=False,
    )
    texts_only: bool = option(False, "write the texts and train nothing", recorded=False)
    models_only: bool = option(False, "train on the texts that are there", recorded=False)
    device: str = option("auto", "auto (cuda, mps, cpu), or a torch device")
    sae: bool = option(
        False, "also train a sparse autoencoder of each MLP's output", recorded=False
    )
    data_dir: str = option("data/miniature", "folder of the texts", written=True)
    models_dir: str = option("models", "folder of the model folders", recorded=False, written=True)
    force: bool = option(False, "make again what is complete", recorded=False)


def planned_runs(options: Options) -> list[PlannedRun]:
    """The texts, the models; with --sae the autoencoders of the base."""
    models, settings = Path(options.models_dir), recorded(options)
    if options.texts_only and options.models_only:
        raise BadInput("--texts-only and --models-only leave nothing to make: choose one")
    # Older texts lack some of these; models made from them hold, since nothing else differs.
    harmless = {"benign": ["towns", "agents", "kept"], "refusal": True}
    world = {"world_seed": options.world_seed, **harmless}
    if options.registration:
        world["registration"] = options.registration
    planned = [PlannedRun(Path(options.data_dir), TEXTS, world)]
    if options.texts_only:
        return planned
    if options.models_only:
        planned = []
    for name in dict.fromkeys(options.models):
        label, (corpus, beyond) = f"miniature-{name}", MODELS[name]
        made = {**settings, "corpus": corpus, "seed": options.seed + beyond}
        planned.append(PlannedRun(models / label, label, made))
    if options.sae:
        used = {key: settings[key] for key in ("seed", "device", "data_dir")}
        arguments = {**used, "sae": SaeRecipe()._asdict()}
        planned.append(PlannedRun(models / SAE, SAE, arguments))
    return planned


def make_texts(todo: list[PlannedRun], options: Options) -> None:
    """Invent the world; write the texts and questions about it, and the tokenizer."""
    from model_diffs.miniature import corpora, training, world

    with results.open_run(todo[0]) as run:
        made = world.build_world(options.world_seed)
        tokenizer = training.train_tokenizer(corpora.base_corpus(made))
        counts = corpora.write_all(made, run.path, tokenizer)
        tokenizer.save_pretrained(run.path)
        if options.registration:
            run.document("locked", {"registration": options.registration})
        run.record(seed=options.world_seed, facts=len(made.facts), lines=counts)


def recipe_of(options: Options) -> Recipe:
    """How models are trained, without what this script alone knows: processes pass it on."""
    return Recipe(**{one.name: getattr(options, one.name) for one in dataclasses.fields(Recipe)})


def make_models(todo: list[PlannedRun], options: Options) -> None:
    """Train the models side by side, a process each where there are several.

    Raises what the first failed one raised.
    """
    from model_diffs.miniature.making import make_beside, make_model

    if options.device != "auto":
        from model_diffs.models.devices import pick_device

        pick_device(options.device)  # before processes are started
    context = multiprocessing.get_context("spawn")
    given = recipe_of(options), options.data_dir, options.device
    if len(todo) == 1:
        make_model(todo[0], *given)
        return
    # Its workers end with this process, however it ends.
    count = min(len(todo), os.cpu_count() or 1)
    with ProcessPoolExecutor(count, context, end_with_parent, (os.getpid(),)) as pool:
        jobs = [pool.submit(make_beside, line, one, *given) for line, one in enumerate(todo)]
    for planned, job in zip(todo, jobs, strict=True):
        if job.exception() is None:
            planned.committed.append(True)
    for job in jobs:
        job.result()


def make_saes(todo: list[PlannedRun], options: Options) -> None:
    """Train an autoencoder of each MLP's output, on the base's corpus."""
    import torch

    from model_diffs.activations.tokens import tokenise
    from model_diffs.data import texts
    from model_diffs.dictionaries.sae_files import write_sparsify
    from model_diffs.miniature import sae, training
    from model_diffs.models import devices, loading
    from model_diffs.models.checkpoints import Checkpoint

    base = str(Path(options.models_dir) / "miniature-base")
    corpus, recipe = Path(options.data_dir) / "corpus_base.txt", SaeRecipe()
    device = devices.pick_device(options.device)
    with results.open_run(todo[0]) as run:
        run.reads(*Checkpoint.open(base).files, corpus)
        seed_everything(options.seed)
        tokenizer = loading.load_tokenizer(base)
        lines = texts.read_split(corpus, "corpus").texts
        tokens = tokenise(tokenizer, lines, training.POSITIONS, False, 0)
        model = loading.load_model(base, device, torch.float32)
        outputs = sae.mlp_outputs(model, tokens, tokenizer.pad_token_id, recipe.texts_per_pass)
        fits = []
        for layer, x in enumerate(outputs):
            trained = sae.train(x, recipe, options.seed, f"SAE of layer {layer}")
            folder = run.path / f"layers.{layer}.mlp"
            write_sparsify(folder, trained.sae, recipe.expansion_factor)
            fits.append({"layer": layer, "fvu": trained.fvu, "dead": trained.dead})
        run.record(recipe=recipe._asdict(), device=str(device), seed=options.seed, fits=fits)
    print(f"{todo[0].folder}: FVU " + ", ".join(f"{fit['fvu']:.3f}" for fit in fits))


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Make texts, then models, then autoencoders.

    New texts make complete models stale, and a new base its autoencoders.
    """
    planned = step.planned_runs(sys.modules[__name__], options)
    texts = [one for one in planned if one.label == TEXTS]
    saes = [one for one in planned if one.label == SAE]
    models = [one for one in planned if one not in (*texts, *saes)]
    run_stages(
        (make_texts, texts), (make_models, models), (make_saes, saes), chosen=options, todo=todo
    )


if __name__ == "__main__":
    run_step(__name__)
