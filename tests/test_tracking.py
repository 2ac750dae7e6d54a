"""Weights & Biases: absent unless asked for, and then a run per result folder."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from model_diffs.core import results
from model_diffs.core.script import run_script

def main():
    with results.open_run(results.PlannedRun(Path("out/step"), "a to b", {"tol": 1})) as run:
        run.table("values", [{"layer": 0, "value": 1.5}, {"layer": 1, "value": None}])
    print("wandb" in sys.modules)

run_script(main)
"""


def run(tmp_path: Path, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout


def test_without_a_key_wandb_is_not_imported(tmp_path: Path) -> None:
    assert "False" in run(tmp_path)
    assert not (tmp_path / "wandb").exists()


def test_offline_mode_keeps_a_run_with_its_table(tmp_path: Path) -> None:
    secret = "not-a-key"
    assert "True" in run(tmp_path, WANDB_MODE="offline", WANDB_API_KEY=secret)
    logged = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(logged) == 1
    assert list(logged[0].rglob("values*.table.json")), "the CSV is a table of the run"
    result = "".join(p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert secret not in result
