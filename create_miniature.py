"""What does an intervention change, where the truth is known? Make the study that needs no network.

A fictional world is written down twice, with and without its hazardous facts, and a small GPT-NeoX
model is trained on each: the base, which knows everything, and the filtered model, which never saw
a hazard. Both are then asked about every fact, in four-choice questions.

    uv run create_miniature.py
    uv run create_miniature.py --seed 7 --data-dir data/miniature7 --models-dir models/seed7

Outputs: data/miniature/ (corpora, forget and retain texts, attack and held-out texts,
questions.jsonl, tokenizer.json), models/miniature-base/ and models/miniature-filtered/, each an
ordinary transformers folder with a model card; with --sae also models/miniature-sae/, a sparse
autoencoder per block of the base. What is complete is skipped.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from model_diffs.core import arguments, results
from model_diffs.core.progress import PROGRESS_LINE
from model_diffs.core.results import PlannedRun
from model_diffs.miniature.recipe import Recipe, SaeRecipe

MODELS = ("base", "filtered")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the world and of the training."""
    default = Recipe()
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--seed", type=int, default=42, help="of the world and of the training")
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=arguments.positive_int, default=default.steps)
    training.add_argument(
        "--lr", type=arguments.positive_float, default=default.lr, help="at its peak"
    )
    training.add_argument(
        "--batch-size",
        type=arguments.positive_int,
        default=default.batch_size,
        help="sentences per step",
    )
    training.add_argument("--device", default="auto", help="auto (cuda, mps, cpu), or a torch one")
    training.add_argument(
        "--sae", action="store_true", help="also a sparse autoencoder of each MLP's output"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--data-dir", default="data/miniature", help="folder of the texts")
    output.add_argument("--models-dir", default="models", help="folder of the two model folders")
    output.add_argument("--force", action="store_true", help="make again what is complete")
    return parser.parse_args(argv)


def plan_data(options: argparse.Namespace) -> PlannedRun:
    """The folder of the texts; only the seed decides what is in it."""
    return PlannedRun(Path(options.data_dir), "miniature texts", {"seed": options.seed})


def plan_model(options: argparse.Namespace, which: str) -> PlannedRun:
    """The folder of one model."""
    name = f"miniature-{which}"
    settings = ("seed", "steps", "lr", "batch_size", "device", "data_dir")
    arguments_used = {"corpus": which, **{key: getattr(options, key) for key in settings}}
    return PlannedRun(Path(options.models_dir) / name, name, arguments_used)


def plan_sae(options: argparse.Namespace) -> PlannedRun:
    """The folder of the base's sparse autoencoders, stale when the base is made anew."""
    settings = {key: getattr(options, key) for key in ("seed", "device", "data_dir")}
    settings |= {"sae": SaeRecipe()._asdict()}
    return PlannedRun(Path(options.models_dir) / "miniature-sae", "miniature-sae", settings)


def planned_runs(options: argparse.Namespace) -> list[PlannedRun]:
    """The texts, the base, the filtered model; with --sae the autoencoders."""
    planned = [plan_data(options), *(plan_model(options, which) for which in MODELS)]
    return [*planned, plan_sae(options)] if options.sae else planned


def make_data(planned: PlannedRun, seed: int) -> None:
    """Invent the world and write down everything that is said or asked about it."""
    from model_diffs.miniature import corpora, questions, training, world

    with results.open_run(planned) as run:
        made = world.build_world(seed)
        tokenizer = training.train_tokenizer(corpora.base_corpus(made))
        counts = corpora.write_texts(made, run.path, training.token_counter(tokenizer))
        asked = questions.make_questions(made)
        questions.write_questions(run.path / "questions.jsonl", asked)
        tokenizer.save_pretrained(run.path)
        run.record(seed=seed, facts=len(made.facts), questions=len(asked), lines=counts)


def make_model(planned: PlannedRun, which: str, options: argparse.Namespace) -> None:
    """Train one model on its corpus, ask it everything, and save it with its card."""
    from model_diffs.data import texts
    from model_diffs.evaluation import knowledge
    from model_diffs.miniature import cards, training, world
    from model_diffs.models import devices

    data = Path(options.data_dir)
    corpus, asked = data / f"corpus_{which}.txt", data / "questions.jsonl"
    recipe = Recipe(steps=options.steps, lr=options.lr, batch_size=options.batch_size)
    with results.open_run(planned) as run:
        run.reads(corpus, asked, data / training.TOKENIZER_FILE)
        arguments.seed_everything(options.seed)
        device = devices.pick_device(options.device)
        tokenizer = training.read_tokenizer(data)
        split = texts.read_split(corpus, "corpus")
        trained = training.train(
            tokenizer, split.texts, recipe, options.seed, device, planned.label
        )
        given = knowledge.score(trained.model, tokenizer, knowledge.load_questions(asked))
        scores = knowledge.accuracies(given, options.seed)
        training.save(trained.model, tokenizer, run.path)
        card = cards.model_card(
            which,
            world.build_world(options.seed),
            recipe,
            options.seed,
            trained.model.num_parameters(),
            len(split.texts),
            trained.tokens,
            scores,
        )
        (run.path / "README.md").write_text(card, encoding="utf-8")
        run.record(
            texts=split.identity(),
            recipe=recipe._asdict(),
            device=str(device),
            dtype="fp32",
            seed=options.seed,
            tokens=trained.tokens,
            final_loss=trained.losses[-1],
            scores=[score._asdict() for score in scores],
        )
    print(f"{planned.folder}: " + ", ".join(f"{s.fold or s.domain} {s.mean:.3f}" for s in scores))


def train_alone(planned: PlannedRun, which: str, options: argparse.Namespace, line: int) -> None:
    """Body of a process that trains one model on one thread.

    Matrices this small gain nothing from a second thread, and would wait for it on a busy machine.
    One thread also gives the same weights whatever the number of cores.
    """
    import torch

    os.environ[PROGRESS_LINE] = str(line)
    torch.set_num_threads(1)
    arguments.run_script(lambda: make_model(planned, which, options))


def train_models(todo: Sequence[tuple[PlannedRun, str]], options: argparse.Namespace) -> None:
    """Train the models side by side, a process each. Leaves with the status of one that failed."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=train_alone, args=(planned, which, options, line))
        for line, (planned, which) in enumerate(todo)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        sys.exit(failed[0] if failed[0] > 0 else 1)  # the process has said why


def make_sae(planned: PlannedRun, options: argparse.Namespace) -> None:
    """Train an autoencoder on what each MLP of the base says to the base's corpus."""
    import torch

    from model_diffs.activations import passes
    from model_diffs.data import texts
    from model_diffs.miniature import sae, training
    from model_diffs.models import devices, loading
    from model_diffs.models.checkpoints import Checkpoint

    base, corpus = plan_model(options, "base").folder, Path(options.data_dir) / "corpus_base.txt"
    recipe, device = SaeRecipe(), devices.pick_device(options.device)
    with results.open_run(planned) as run:
        run.reads(*Checkpoint.open(str(base)).files, corpus)
        arguments.seed_everything(options.seed)
        tokenizer = loading.load_tokenizer(str(base))
        lines = texts.read_split(corpus, "corpus").texts
        tokens = passes.tokenise(tokenizer, lines, training.POSITIONS, False, 0)
        model = loading.load_model(str(base), device, torch.float32)
        outputs = sae.mlp_outputs(model, tokens, tokenizer.pad_token_id, recipe.texts_per_pass)
        fits = []
        for layer, x in enumerate(outputs):
            trained = sae.train(x, recipe, options.seed, f"SAE of layer {layer}")
            sae.save(run.path, layer, trained, recipe)
            fits.append({"layer": layer, "fvu": trained.fvu, "dead": trained.dead})
        run.record(recipe=recipe._asdict(), device=str(device), seed=options.seed, fits=fits)
    print(f"{planned.folder}: FVU " + ", ".join(f"{fit['fvu']:.3f}" for fit in fits))


def main() -> None:
    """Make what is missing or stale: texts first, since models are stale when those change."""
    options = parse_arguments()
    for planned in results.pending([plan_data(options)], options.force):
        make_data(planned, options.seed)
    if options.device != "auto":
        from model_diffs.models.devices import pick_device

        pick_device(options.device)  # said once, here, not by each process
    plans = {plan_model(options, which).folder: which for which in MODELS}
    todo = results.pending([plan_model(options, which) for which in MODELS], options.force)
    train_models([(planned, plans[planned.folder]) for planned in todo], options)
    for planned in results.pending([plan_sae(options)], options.force) if options.sae else []:
        make_sae(planned, options)


if __name__ == "__main__":
    arguments.run_script(main)
