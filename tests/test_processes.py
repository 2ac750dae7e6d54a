"""Several processes under `accelerate launch` give the tables of one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models

pytestmark = pytest.mark.study
ROOT = Path(__file__).parent.parent
TEXTS = [f"The {a} of {b} is at the {c}." for a in ("mill", "ferry") for b in ("Ava", "Bor", "Cul")
         for c in ("river", "old bridge", "lower market square")]  # fmt: skip


def launch(processes: int, script: str, words: list[str], place: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes"]
    command += [str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", str(ROOT / script), *words]
    if processes == 1:
        command = [sys.executable, str(ROOT / script), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29611"}
    found = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("script", "table"),
    [
        ("collect_param_stats.py", "param_stats/per_matrix.csv"),
        ("collect_activation_norms.py", "activation_stats/activation_stats.csv"),
        ("row_space_projection_analysis.py", "row_space_projection/projection_metrics.csv"),
    ],
)
def test_two_processes_give_the_tables_of_one(tmp_path: Path, script: str, table: str) -> None:
    for side, seed in (("a", 0), ("b", 1)):
        tiny_models.save("gpt_neox", tmp_path / side, seed=seed)
    (tmp_path / "forget.txt").write_text("\n".join(TEXTS[:9]))
    (tmp_path / "retain.txt").write_text("\n".join(TEXTS[9:]))
    words = ["--model-a", "./a", "--model-b", "./b"]
    if "param_stats" not in script:
        words += ["--forget-text", "forget.txt", "--retain-text", "retain.txt", "--batch-size", "2"]
    found = {}
    for processes in (1, 2):
        launch(processes, script, [*words, "--outroot", str(processes)], tmp_path)
        found[processes] = pd.read_csv(tmp_path / str(processes) / "a__to__b" / table)
    assert list(found[1].columns) == list(found[2].columns)
    for column in found[1]:
        one, two = found[1][column], found[2][column]
        if one.dtype.kind == "f":
            np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-7, err_msg=column)
        else:
            assert one.tolist() == two.tolist()
