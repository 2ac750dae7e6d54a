"""Every script on a device that has no fp64, with the numbers of the CPU.

The scripts run in a process of their own: torch takes new devices only before its first gradient.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_study
from single_device import AVAILABLE, NAME

from model_diffs.core.methods import METHODS
from model_diffs.core.step import load_steps

pytestmark = [
    pytest.mark.study,
    pytest.mark.xdist_group("single_device"),
    pytest.mark.skipif(not AVAILABLE, reason="this torch takes no device written in Python"),
]
HERE = Path(__file__).parent
MORE = {
    "local_lipschitzness_analysis.py": ["--num-perturbations", "2", "--max-iters", "4",
                                        "--lipschitz-samples", "6", "--jacobian-samples", "6"],
    "linear_probe_analysis.py": ["--folds", "2", "--max-iter", "20"],
    "relearn.py": ["--lr", "1e-3", "--steps", "4", "--eval-steps", "0,4", "--batch-size", "4"],
    "collect_param_stats.py": ["--empirical-rank"],
}  # fmt: skip
STEPS = {
    one.name: one for one in load_steps() if one.step.scope in ("comparison", "model")
    and one.accepts("device") and "dictionary" not in one.step.needs and not one.accepts("tasks")
}  # fmt: skip
IMPORTANCE = "important_acts_ftrs/layer_gradient_analysis.py"
Words = list[str]


def step_words(study: tiny_study.Study, name: str) -> Words:
    """Models, texts and questions of a step, as far as it has options for them."""
    texts = {f"{split}_text": study.root / f"{split}.txt" for split in ("forget", "retain")}
    words = {"model_a": ["--model-a", study.model_a, "--model-b", study.model_b]}
    words |= {"model": ["--model", study.model_a, study.model_b], "base": ["--base", study.model_a]}
    words |= {name: [f"--{name.replace('_', '-')}", str(path)] for name, path in texts.items()}
    words |= {"questions": ["--questions", str(study.root / "questions.jsonl")]}
    given = [word for option, own in words.items() if STEPS[name].accepts(option) for word in own]
    return [*given, *MORE.get(name, [])]


def method_words(study: tiny_study.Study, method: str) -> Words:
    words = ["--model", study.model_a, "--method", method, "--batch-size", "8", "--device", NAME]
    words += ["--forget-text", str(study.root / "forget.txt")]
    words += ["--retain-text", str(study.root / "retain.txt")]
    more = {one: ["--layer-id", "0,1"] for one in ("rmu", "cb", "lat", "cb_lat")}
    more |= {"noise": ["--like", study.model_b]}
    more |= {one: ["--text", str(study.root / "retain.txt")] for one in ("finetune", "refusal")}
    more |= {"noise_distil": ["--teacher", study.model_b]}
    return [*words, *more.get(method, []), "--outdir", str(study.root / "made" / method)]


def jobs_of(study: tiny_study.Study) -> dict[str, tuple[str, Words]]:
    """Name of each job → script and words."""
    found = {
        f"{name} {device}": (
            name,
            [*step_words(study, name), "--outroot", str(study.root / device), "--device", device],
        )
        for name in STEPS
        for device in ("cpu", NAME)
    }
    found |= {f"unlearn {one}": ("unlearn.py", method_words(study, one)) for one in METHODS}
    texts, folder = [str(study.root / f"{s}.txt") for s in ("forget", "retain")], study.root / "d"
    own = ["--dataset", *texts, "--device", NAME]
    train = ["--model", study.model_a, "--layer", "1", "--k", "2", "--outdir", str(folder)]
    found["train"] = ("train_itda.py", [*train, *own])
    pair = ["--model-a", study.model_a, "--model-b", study.model_b, "--itda", str(folder)]
    found["diff"] = ("diff.py", [*pair, *own, "--outroot", str(study.root / "diff")])
    for by in ("values", "gradients"):
        words = ["--model", study.model_a, "--dataset", texts[0], "--aggregate-by", by]
        words += ["--save-outputs", "--outroot", str(study.root / by), "--device", NAME]
        found[f"importance {by}"] = (IMPORTANCE, words)
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    """Two tiny models and their texts, after all jobs; jobs.json says how each ended."""
    found = tiny_study.make(tmp_path_factory.mktemp("single"), "llama")
    text = tiny_study.questions(found.root / "questions.jsonl", 24).read_text()
    for fold in ("heldout", "tune", "attack"):
        text = text.replace('"fold": null', f'"fold": "{fold}"', 5)
    (found.root / "questions.jsonl").write_text(text)
    (found.root / "jobs.json").write_text(json.dumps(jobs_of(found)))
    command = [sys.executable, HERE / "single_device_jobs.py", found.root / "jobs.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return found


def ended(study: tiny_study.Study, job: str) -> str:
    """`done`, or the error that ended the job."""
    return json.loads((study.root / "jobs.json").read_text())[job]


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {
        path.relative_to(folder).as_posix(): pd.read_csv(path) for path in folder.rglob("*.csv")
    }


def equal(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    if [*a] != [*b] or len(a) != len(b):
        return False
    numbers = a.select_dtypes("number").columns
    rest = [column for column in a if column not in numbers]
    return a[rest].equals(b[rest]) and np.allclose(
        a[numbers], b[numbers], rtol=1e-4, atol=1e-5, equal_nan=True
    )


@pytest.mark.parametrize("rule", ["sums", "double", "cast", "zeros", "two devices", "gradient"])
def test_the_device_refuses_what_a_mac_refuses(study: tiny_study.Study, rule: str) -> None:
    assert ended(study, rule) == "done"


@pytest.mark.parametrize("name", STEPS)
def test_steps_give_the_numbers_of_the_cpu(study: tiny_study.Study, name: str) -> None:
    assert ended(study, f"{name} cpu") == ended(study, f"{name} {NAME}") == "done"
    folder = STEPS[name].step.folder
    expected, got = (
        {key: table for key, table in tables(study.root / device).items() if folder in key}
        for device in ("cpu", NAME)
    )
    assert expected and expected.keys() == got.keys()
    assert [key for key in expected if not equal(expected[key], got[key])] == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(study: tiny_study.Study, method: str) -> None:
    assert ended(study, f"unlearn {method}") == "done"
    assert list((study.root / "made" / method).glob("*.safetensors"))


@pytest.mark.parametrize("job", ["train", "diff", "importance values", "importance gradients"])
def test_dictionaries_and_importance(study: tiny_study.Study, job: str) -> None:
    assert ended(study, job) == "done"
