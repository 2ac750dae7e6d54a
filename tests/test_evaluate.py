"""evaluate.py: the harness's own numbers, and two models on the same samples."""

import json
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models

from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.evaluation import harness

TASK = """\
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def write_task(folder: Path, samples: int = 24) -> Path:
    """A task of one's own: a YAML file and its data."""
    folder.mkdir()
    words = ["red", "green", "blue", "a long grey"]
    with (folder / "colours.jsonl").open("w") as out:
        for number in range(samples):
            line = {"question": f"Thing {number} is", "choices": words, "answer": number % 4}
            out.write(json.dumps(line) + "\n")
    (folder / "colours.yaml").write_text(TASK.format(file=folder / "colours.jsonl"))
    return folder


def test_mcnemar_by_counting() -> None:
    base, changed = [1, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 1, 0]
    only_base, only_changed, p = harness.mcnemar(base, changed)
    assert (only_base, only_changed) == (4, 1)
    # Two-sided: outcomes of five fair coins at least as unlikely as four to one.
    assert p == pytest.approx(2 * (comb(5, 0) + comb(5, 1)) / 2**5)
    assert harness.mcnemar(base, base) == (0, 0, 1.0)
    for only, other in product(range(4), repeat=2):
        a, b = [1] * only + [0] * other, [0] * only + [1] * other
        assert harness.mcnemar(a, b)[2] == pytest.approx(harness.mcnemar(b, a)[2])


def test_paired_intervals_are_of_the_difference_on_the_same_samples() -> None:
    draw = np.random.default_rng(0)
    a = (draw.random(200) < 0.5).astype(float)
    b = a.copy()
    b[:6] = 1 - b[:6]  # agrees on nearly all samples

    def made(values: np.ndarray) -> harness.Evaluated:
        own = {"t": {f"t/{i}": float(v) for i, v in enumerate(values)}}
        return harness.Evaluated([], {"t": "acc"}, own, {})

    first, everything = harness.paired(made(a), made(b), seed=0)
    assert first[1:] == everything[1:] and (first.task, everything.task) == ("t", "all")
    assert first.change == pytest.approx(b.mean() - a.mean())
    # Unpaired, the interval would be about ± 0.1.
    assert first.change_high - first.change_low < 0.06
    with pytest.raises(ValueError, match="different samples"):
        harness.paired(made(a), made(b[:100]), seed=0)


def test_without_the_harness_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = harness.importlib.util.find_spec

    def without(name: str, *rest: object) -> object:
        return None if name == "lm_eval" else found(name, *rest)

    monkeypatch.setattr(harness.importlib.util, "find_spec", without)
    a, b = (str(tiny_models.save("llama", tmp_path / n, seed=i)) for i, n in enumerate("ab"))
    words = ["--model-a", a, "--model-b", b, "--tasks", "x", "--outroot", str(tmp_path / "out")]
    with pytest.raises(BadInput, match="uv sync --extra lm-eval"):
        execute(load_script(SCRIPTS / "evaluate.py"), words)
    assert not (tmp_path / "out").exists()


def test_a_local_task_gives_the_harness_own_number(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    tasks = write_task(tmp_path / "tasks")
    a, b = (str(tiny_models.save("llama", tmp_path / n, seed=i)) for i, n in enumerate("ab"))
    words = ["--model-a", a, "--model-b", b, "--tasks", "colours", "--task-dir", str(tasks)]
    words += ["--device", "cpu", "--outroot", str(tmp_path / "out")]
    execute(load_script(SCRIPTS / "evaluate.py"), words)
    folder = tmp_path / "out" / "a__to__b" / "evaluation"
    scores = pd.read_csv(folder / "evaluation.csv")
    own = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": a, "dtype": "float32"},
        tasks=["colours"],
        device="cpu",
        bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks)),
    )["results"]["colours"]
    for metric in ("acc", "acc_norm"):
        row = scores[(scores["model"] == "a") & (scores["metric"] == metric)].iloc[0]
        assert row["value"] == own[f"{metric},none"] and row["samples"] == 24
        assert row["low"] <= row["value"] <= row["high"]
    paired = pd.read_csv(folder / "paired.csv").set_index("task")
    each = pd.read_csv(folder / "per_sample.csv")
    assert paired.loc["colours", "base"] == own["acc,none"] == each["base"].mean()
    assert paired.loc["all", "only_base"] == (each["change"] < 0).sum()
    logged = (folder / "samples" / "b__colours.jsonl").read_text().splitlines()
    assert len(logged) == 24 and "doc" in json.loads(logged[0])
    # The page shows the paired change and McNemar's p.
    root = ["--outroot", str(tmp_path / "out"), "--model-a", a, "--model-b", b]
    execute(load_script(SCRIPTS / "report.py"), root)
    signature = pd.read_csv(tmp_path / "out" / "report" / "signature.csv").iloc[0]
    assert signature["tasks_change"] == pytest.approx(each["change"].mean())
    assert signature["tasks_change_low"] <= signature["tasks_change"]
    assert signature["tasks_mcnemar"] == pytest.approx(paired.loc["all", "p_mcnemar"])
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "published tasks, change" in page and "McNemar" in page
    with pytest.raises(BadInput, match="no such task"):
        execute(load_script(SCRIPTS / "evaluate.py"), [*words, "--tasks", "nothing_like_it"])
    # The index knows where the file lies; it is read when the task is.
    (tasks / "colours.yaml").write_text(TASK.format(file="nowhere").replace("dataset_path", "odd"))
    with pytest.raises(BadInput, match="colours: cannot be read"):
        execute(load_script(SCRIPTS / "evaluate.py"), [*words, "--force"])
