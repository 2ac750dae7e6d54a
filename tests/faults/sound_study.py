"""A sound study, small enough to be made anew for every damage, and a command of every script.

`build(place, scripts)` makes it: models, texts, questions, and the results of the scripts.
"""

import csv
import hashlib
import importlib.util
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import forked
import tiny_gguf
import tiny_models
import tiny_study
import torch
from safetensors.torch import save_file

from model_diffs.brittleness.table import TARGET

SECONDS = 30.0
STUDY = """
[models]
base = "./a"
filtered = "./b"
[texts]
forget = "texts/forget.txt"
retain = "texts/retain.txt"
questions = "texts/questions.jsonl"
max-samples = 12
[dictionary]
folder = "artifacts/itda"
layer = 1
[unlearn.npo]
batch-size = 4
[steps.14]
lr = [1e-3]
"""
WORLDS = """
seeds = ["20{world}"]
results = "worlds/{world}"
made_in = "./made/{world}"
[worlds]
development = [1, 2]
locked = [3]
measure = "1"
attack = "14"
registration = "none.md"
[prediction]
predictors = ["a"]
baseline = ["b"]
[models]
base = "./a"
filtered = "./b"
[unlearn.npo]
until = "hazard=0.30"
"""
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""

TEXTS = ["--forget-text", "texts/forget.txt", "--retain-text", "texts/retain.txt"]
CPU = ["--device", "cpu"]
PAIR = ["--model-a", "./a", "--model-b", "./b"]
READ = [*PAIR, *TEXTS, *CPU]
QUESTIONS = ["--questions", "texts/questions.jsonl"]
ITDA = ["--dataset", "texts/forget.txt", "texts/retain.txt", *CPU]
# By script, in an order in which each finds what it reads.
COMMANDS: dict[str, list[str]] = {
    "create_datasets.py": ["--forget-source", "texts/forget.txt", "--retain-source",
                           "texts/retain.json", "--samples", "5", "--outdir", "data"],
    "collect_param_stats.py": [*PAIR, *CPU],
    "plot_param_stats.py": PAIR,
    "collect_activation_norms.py": READ,
    "plot_activation_norms.py": PAIR,
    "plot_side_by_side.py": PAIR,
    "analyze_mlp_vs_attn.py": PAIR,
    "null_space_analysis.py": [*PAIR, *CPU, "--k", "2"],
    "activation_separation_analysis.py": READ,
    "activation_covariance_analysis.py": READ,
    "mlp_nullspace_alignment.py": [*PAIR, *CPU],
    "row_space_projection_analysis.py": READ,
    "local_lipschitzness_analysis.py": [*READ, "--num-perturbations", "2", "--max-iters", "5",
                                        "--lipschitz-samples", "3"],
    "linear_probe_analysis.py": ["--model", "./b", *TEXTS, *QUESTIONS, *CPU, "--folds", "2",
                                 "--max-iter", "20"],
    "relearn.py": ["--model", "./b", "--base", "./a", *TEXTS, *QUESTIONS, *CPU, "--steps", "2",
                   "--eval-steps", "0,2", "--lr", "1e-3"],
    "elicit.py": ["--model", "./b", "--base", "./a", *TEXTS, *QUESTIONS, *CPU, "--general-floor",
                  "0", "--attacks", "all", "--strengths", "soft_prompt=n1", "rewind=k1,all"],
    "train_itda.py": ["--model", "./a", "--layer", "1", "--outdir", "artifacts/itda", "--k", "2",
                      "--max-atoms", "20", *ITDA],
    "diff.py": [*PAIR, "--itda", "artifacts/itda", *ITDA],
    "kl_divergence.py": READ,
    "unlearn.py": ["--model", "./a", "--method", "npo", *TEXTS, *QUESTIONS, *CPU],
    "report.py": PAIR,
    "infer.py": ["--model", "./b", "--prompt", "The ferry", "--greedy", "--max-new-tokens", "2",
                 *CPU],
    "check_experiment.py": ["--study", "study.toml", *CPU],
    "important_acts_ftrs/layer_gradient_analysis.py": [
        "--model", "./b", "--dataset", "texts/forget.txt", *CPU, "--save-outputs"],
    "important_acts_ftrs/sae_gradient_analysis.py": [
        "--model", "./b", "--sae", "sae", "--dataset", "texts/forget.txt", *CPU, "--save-outputs"],
    "attack_free_analysis.py": [*READ, *QUESTIONS, "--removed", "general"],
    "write_predictors.py": PAIR,
    "predict_brittleness.py": ["--study", "worlds.toml", "--data", "worlds.csv"],
    "import_gguf.py": ["--file", "files/tiny.gguf", "--outdir", "models/tiny"],
    "evaluate.py": [*PAIR, *CPU, "--tasks", "colours", "--task-dir", "tasks"],
    "pipeline": ["study.toml", "--dry-run"],
}  # fmt: skip
EXTRAS = {"import_gguf.py": "gguf", "evaluate.py": "lm_eval"}
"""Packages without which a script does nothing."""
COMMANDS = {
    name: words
    for name, words in COMMANDS.items()
    if name not in EXTRAS or importlib.util.find_spec(EXTRAS[name])
}


def build(place: Path, scripts: Sequence[str]) -> None:
    """Models, texts, questions, a study, and the results of `scripts`."""
    place.mkdir(parents=True)
    for side, seed in (("a", 0), ("b", 1)):
        tiny_models.save("gpt_neox", place / side, seed=seed)
    (place / "texts").mkdir()
    for split in ("forget", "retain"):
        lines = tiny_study.texts(split, 12)
        (place / f"texts/{split}.txt").write_text("\n".join(lines) + "\n")
        (place / f"texts/{split}.json").write_text(json.dumps([{"text": line} for line in lines]))
    questions = [
        {"id": f"q{i}", "domain": "general", "entity": f"e{i}", "relation": "r",
         "fold": ("heldout", "attack", "tune")[i % 3], "prompt": f"What is number {i}",
         "choices": ["a", "b", "c", "d"], "answer": i % 4}
        for i in range(9)
    ]  # fmt: skip
    lines = [json.dumps(question) for question in questions]
    (place / "texts/questions.jsonl").write_text("\n".join(lines))
    (place / "study.toml").write_text(STUDY)
    _save_sae(place / "sae/layers.1.mlp")
    _write_worlds(place)
    _write_task(place / "tasks")
    if "import_gguf.py" in COMMANDS:
        (place / "files").mkdir()
        tiny_gguf.write(place / "files/tiny.gguf", "Q8_0")
    for script in scripts:
        ended = forked.run(place, [script, *COMMANDS[script]], 10 * SECONDS)
        if ended.status:
            raise SystemExit(f"{script} fails on the sound study:\n{ended.out}{ended.err}")


def _save_sae(folder: Path) -> None:
    """A random SAE of 8 features, in the format of sparsify."""
    size, width = 8, tiny_models.HIDDEN
    draw = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(size, width, generator=draw))
    zeros = {"encoder.bias": torch.zeros(size), "b_dec": torch.zeros(width)}
    folder.mkdir(parents=True)
    save_file(
        {"encoder.weight": decoder.clone(), "W_dec": decoder, **zeros}, folder / "sae.safetensors"
    )
    told = {"activation": "topk", "num_latents": size, "k": 2, "d_in": width, "transcode": False,
            "normalize_decoder": True, "multi_topk": False}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(told))


def _write_worlds(place: Path) -> None:
    """A study of worlds, and a table of what became of its models."""
    draw = random.Random(0)
    (place / "worlds.toml").write_text(WORLDS)
    names = ("world", "part", "model", "role", "method", "status", "a", "b", TARGET)
    with (place / "worlds.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        for world, family in itertools.product((1, 2, 3), range(9)):
            a, b, noise = (draw.gauss(0, 1) for _ in range(3))
            part = "locked" if world == 3 else "development"
            target = a + 0.2 * noise + world
            table.writerow([world, part, f"f{family}", "removal", "m", "attacked", a, b, target])


def _write_task(folder: Path) -> None:
    """A task of lm-evaluation-harness: a YAML file and its samples."""
    folder.mkdir()
    (folder / "colours.yaml").write_text(TASK)
    words = ["red", "green", "blue", "a long grey"]
    samples = [{"question": f"Thing {i} is", "choices": words, "answer": i % 4} for i in range(6)]
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, samples)) + "\n")


def contents(place: Path) -> dict[str, str]:
    """Every file, hidden ones and the cache of activations aside, with the hash of its bytes."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and "activation_cache" not in path.parts
    }
