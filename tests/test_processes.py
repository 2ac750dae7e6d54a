"""Several processes under `accelerate launch` give the tables of one."""

import json
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
    # With --cpu accelerate starts a single process, whatever --num_processes says.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", str(processes), "--num_machines", "1"]
    command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(ROOT / script), *words]
    if processes == 1:
        command = [sys.executable, str(ROOT / script), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
def test_several_processes_give_the_tables_of_one(tmp_path: Path, script: str, table: str) -> None:
    for side, seed in (("a", 0), ("b", 1)):
        tiny_models.save("gpt_neox", tmp_path / side, seed=seed)
    (tmp_path / "forget.txt").write_text("\n".join(TEXTS[:9]))
    (tmp_path / "retain.txt").write_text("\n".join(TEXTS[9:]))
    words = ["--model-a", "./a", "--model-b", "./b"]
    if "param_stats" not in script:
        words += ["--forget-text", "forget.txt", "--retain-text", "retain.txt", "--batch-size", "2"]
    found = {}
    for processes in (1, 2, 4):
        launch(processes, script, [*words, "--outroot", str(processes)], tmp_path)
        folder = (tmp_path / str(processes) / "a__to__b" / table).parent
        record = json.loads((folder / "run.json").read_text())
        assert record["processes"] == processes
        found[processes] = {one.name: pd.read_csv(one) for one in sorted(folder.glob("*.csv"))}
    for processes in (2, 4):
        for name, one in found[1].items():
            several = found[processes][name]
            assert [*one] == [*several] and len(one) == len(several)
            for column in one:
                if one[column].dtype.kind == "f":
                    np.testing.assert_allclose(
                        several[column], one[column], rtol=1e-6, atol=1e-7, err_msg=column
                    )
                else:
                    assert one[column].tolist() == several[column].tolist(), (name, column)
