"""Several processes under `accelerate launch` give the tables of one, and read alike."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import tiny_study
import torch

from model_diffs.core import processes
from model_diffs.core.step import load_steps
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint

pytestmark = [pytest.mark.study, pytest.mark.xdist_group("processes")]
HERE = Path(__file__).parent
SMALL = ["--batch-size", "2"]  # enough batches for four processes
TEXTS = ["--forget-text", "forget.txt", "--retain-text", "retain.txt", *SMALL]
PAIR, BOTH = ["--model-a", "./a", "--model-b", "./b"], ["--model", "./a", "./b"]
ASKED = ["--questions", "questions.jsonl", "--base", "./a", "--filtered", "./b"]
ATTACK = ["--lr", "1e-3", "2e-3", "--steps", "2", "--eval-steps", "0,2"]
ELICIT = ["--attacks", "noise", "quantise", "prune", "few_shot", "rewind", "lens"]
JOBS: dict[str, list[Any]] = {
    "param_stats": ["collect_param_stats.py", PAIR],
    "activation_stats": ["collect_activation_norms.py", [*PAIR, *TEXTS]],
    "null_space_analysis": ["null_space_analysis.py", PAIR],
    "activation_separation": ["activation_separation_analysis.py", [*PAIR, *TEXTS]],
    "activation_covariance": ["activation_covariance_analysis.py", [*PAIR, *TEXTS]],
    "mlp_nullspace": ["mlp_nullspace_alignment.py", PAIR],
    "row_space_projection": ["row_space_projection_analysis.py", [*PAIR, *TEXTS]],
    "lipschitzness": ["local_lipschitzness_analysis.py", [*PAIR, *TEXTS, "--max-iters", "3"]],
    "linear_probes": [
        "linear_probe_analysis.py",
        [*BOTH, *TEXTS, "--questions", "questions.jsonl", "--folds", "3"],
    ],
    "relearning": ["relearn.py", [*BOTH, *TEXTS, *ASKED, *ATTACK]],
    "kl_divergence": ["kl_divergence.py", [*PAIR, *TEXTS]],
    "elicitation": ["elicit.py", [*BOTH, *TEXTS, *ASKED, *ELICIT]],
    "importance": [
        "important_acts_ftrs/layer_gradient_analysis.py",
        ["--model", "./a", "--dataset", "forget.txt", "--save-outputs", *SMALL],
    ],
}


# With --cpu accelerate starts a single process, whatever --num_processes says.
LAUNCHER = [
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]


def run(place: Path, *words: str) -> None:
    """Run every job; results of so many processes go to the folder of that name."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    found = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    told = [line for line in found.stderr.splitlines() if "elastic" not in line]
    assert found.returncode == 0, found.stdout[-3000:] + "\n".join(told)[-9000:]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `1`, `2` and `4`: the results of every job by so many processes."""
    place = tmp_path_factory.mktemp("processes")
    for side, seed in (("a", 0), ("b", 1)):
        tiny_models.save("gpt_neox", place / side, seed=seed)
    for split in ("forget", "retain"):
        (place / f"{split}.txt").write_text("\n".join(tiny_study.texts(split, 12)))
    text = tiny_study.questions(place / "questions.jsonl", 24).read_text()
    for fold in ("heldout", "tune", "attack"):
        text = text.replace('"fold": null', f'"fold": "{fold}"', 5)
    (place / "questions.jsonl").write_text(text)
    (place / "jobs.json").write_text(json.dumps(JOBS))
    jobs = str(HERE / "processes_jobs.py")
    run(place, *LAUNCHER, jobs, "jobs.json", "2")
    run(place, jobs, "jobs.json", "1", "4")  # forks of one process: their imports are shared
    return place


def tables(place: Path, count: int, job: str) -> dict[str, Any]:
    """Every table and array of a job, by its path."""
    root = place / str(count)
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*.csv")):
        if job in path.relative_to(root).as_posix():
            found[path.relative_to(root).as_posix()] = pd.read_csv(path)
    if job == "importance":
        arrays = [p for p in sorted(root.rglob("*.npy")) if "cache" not in p.as_posix()]
        found |= {p.name: np.load(p) for p in arrays}  # folders are named by their time
    return found


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("job", list(JOBS))
def test_several_processes_give_the_tables_of_one(outputs: Path, job: str, count: int) -> None:
    expected, several = tables(outputs, 1, job), tables(outputs, count, job)
    assert expected and [*expected] == [*several]
    for name, one in expected.items():
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(several[name], one, rtol=1e-5, atol=1e-7, err_msg=name)
            continue
        assert [*one] == [*several[name]] and len(one) == len(several[name]), name
        for column in one:
            if one[column].dtype.kind == "f":
                np.testing.assert_allclose(
                    several[name][column], one[column], rtol=1e-6, atol=1e-7, err_msg=column
                )
            else:
                assert one[column].tolist() == several[name][column].tolist(), (name, column)


@pytest.mark.parametrize("count", [2, 4])
def test_records_say_how_many_processes_there_were(outputs: Path, count: int) -> None:
    records = [*(outputs / str(count)).glob("*/*/run.json")]
    assert len(records) > len(JOBS)
    for record in records:
        assert json.loads(record.read_text())["processes"] == count


def test_every_step_that_may_run_on_several_processes_is_among_the_jobs() -> None:
    scripts = {script for script, _ in JOBS.values()}
    shared = {one.name for one in load_steps() if one.step.processes}
    assert shared - {"unlearn.py"} <= scripts  # unlearn.py: tests of its trainer and sharding


def test_processes_read_side_by_side_only_where_all_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has less free memory than this one."""
    stored = [Checkpoint.open(str(tiny_models.save("gpt_neox", tmp_path / n))) for n in ("a", "b")]
    cpu, fp32 = torch.device("cpu"), torch.float32
    assert loading.fit_together(stored, "auto", cpu, fp32)
    monkeypatch.setattr(devices, "gather_over_processes", lambda values: [*values, False])
    assert not loading.fit_together(stored, "auto", cpu, fp32)
    assert loading.fit_together(stored, "yes", cpu, fp32)


def test_one_process_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(processes, "state", lambda: pytest.fail("no group is needed"))
    processes.wait_for_processes()
