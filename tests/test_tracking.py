"""Weights & Biases: absent unless asked for, and then a run per result folder."""

import os
import subprocess
import sys
from pathlib import Path

from wandb_server import WandbServer

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


def started(tmp_path: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def run(tmp_path: Path, **environment: str) -> str:
    done = started(tmp_path, SCRIPT, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


TRAINED = """
import sys
from pathlib import Path
from model_diffs.core import results, tracking
from model_diffs.core.script import run_script

def main():
    planned = results.PlannedRun(Path("out/model"), "a", {"lr": 0.1})
    with results.open_run(planned) as run:
        parts = ("facts/lr 1e-3", "facts/lr 15e-4")
        tracking.begin(planned.folder, planned.label, planned.arguments, parts)
        for step in (1, 2, 3):
            numbers = {"step": step, "loss": 1 / step, "grad_norm": 2.0, "lr": 0.1}
            tracking.log(planned.folder, step, numbers)
        tracking.log(planned.folder, 3, {"forget_NLL": 4.0, "retain_NLL": None})
        for part in parts:
            tracking.log(planned.folder, 1, {"loss": 7.0}, part)
        run.document("values", {"value": 1.5})

run_script(main)
"""


def test_training_is_shown_in_the_run_that_later_holds_its_folder(tmp_path: Path) -> None:
    with WandbServer() as server:
        done = started(tmp_path, TRAINED, WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    assert done.returncode == 0 and "warning" not in done.stderr
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in server.history]
    assert [row["loss"] for row in rows if "loss" in row] == [1.0, 0.5, 1 / 3]
    assert rows[0] == {"step": 1, "loss": 1.0, "grad_norm": 2.0, "lr": 0.1}
    assert any(row.get("forget_NLL") == 4.0 and "retain_NLL" not in row for row in rows)
    for part in ("facts/lr 1e-3", "facts/lr 15e-4"):
        shown = {f"{part}/step": 1, f"{part}/loss": 7.0}
        assert any(row.items() >= shown.items() for row in rows), "a training of several"
    assert "seconds" in rows[-1], "the folder, in the same run"


SEVERAL = """
from pathlib import Path
from model_diffs.core import results, tracking
from model_diffs.core.script import run_script

def main():
    planned = [results.PlannedRun(Path(name), name, {}) for name in ("one", "two")]
    for each in planned:
        tracking.begin(each.folder, each.label, {})
        tracking.log(each.folder, 1, {"loss_of": each.label})
    for each in planned:
        with results.open_run(each) as run:
            run.document("values", {})

run_script(main)
"""


def test_results_that_are_made_at_a_time_have_runs_of_their_own(tmp_path: Path) -> None:
    with WandbServer() as server:
        done = started(tmp_path, SEVERAL, WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    assert done.returncode == 0 and "warning" not in done.stderr
    assert len(server.runs) == 2
    for label in ("one", "two"):
        (own,) = (rows for rows in server.runs.values() if rows[0]["loss_of"] == label)
        assert "seconds" in own[-1]


def test_a_tracker_that_fails_is_a_warning(tmp_path: Path) -> None:
    with WandbServer(broken=True) as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
        script = TRAINED.replace("import sys\n", "import sys, model_diffs.core.tracking as t\n"
                                 "t.INIT_SECONDS = 2\n")  # fmt: skip
        done = started(tmp_path, script, **environment)
    assert done.returncode == 0
    assert done.stderr.count("warning: W&B: ") == 1 and "not affected" in done.stderr
    assert (tmp_path / "out" / "model" / "values.json").is_file()
