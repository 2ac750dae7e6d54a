"""run_unlearn.sh and create_all_unlearning_models.sh, with a `uv` that only starts this Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from conftest import copy_project

from model_diffs.pipeline import planning
from model_diffs.unlearning import METHODS

ROOT = Path(__file__).parent.parent
UV = f"""#!/bin/sh
while [ "$1" != python ] && [ "$1" != echo ]; do
  if [ "$1" = --project ]; then shift; fi
  shift
done
if [ "$1" = python ]; then shift; exec "{sys.executable}" "$@"; fi
exec "$@"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `uv run python …` starts this Python, and nothing steers a run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/uv").write_text(UV)
    (tmp_path / "bin/uv").chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "TMPDIR", "LANG")}
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1"}


def shell(
    where: Path, environment: dict[str, str], script: str, *words: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", script, *words],
        cwd=where,
        env={**environment, **settings},
        capture_output=True,
        text=True,
    )


def test_the_environment_becomes_options(tmp_path: Path, environment: dict[str, str]) -> None:
    settings = {"LR": "2e-5", "BATCH_SIZE": "8", "LAYER_ID": "1,2", "OUTDIR": "a b"}
    script = str(ROOT / "run_unlearn.sh")
    found = shell(tmp_path, environment, script, "rmu", "--force", LAUNCHER="echo", **settings)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[0].endswith("/unlearn.py")
    said = found.stdout.split(maxsplit=1)[1].strip()
    assert said == (
        "--model EleutherAI/deep-ignorance-unfiltered --method rmu --lr 2e-5 --batch-size 8 "
        "--outdir a b --layer-id 1,2 --force"
    )
    found = shell(tmp_path, environment, script, "ga", LAUNCHER="echo", MODEL="m")
    assert found.stdout.split()[1:] == ["--model", "m", "--method", "ga"]


def test_every_setting_is_an_option_of_unlearn(tmp_path: Path, environment: dict[str, str]) -> None:
    text = (ROOT / "run_unlearn.sh").read_text()
    listed = re.search(r'OPTIONS="([^"]*)"', text)
    assert listed is not None
    script = planning.load_script(ROOT / "unlearn.py")
    known = vars(script.parse_arguments(["--model", "m", "--method", "ga"]))
    # Switches have no value to take from the environment.
    left_out = {"model", "method", "force", "trust_remote_code", "gradient_checkpointing"}
    assert {name.replace("-", "_") for name in listed[1].split()} == set(known) - left_out
    assert shell(tmp_path, environment, str(ROOT / "run_unlearn.sh")).returncode == 2
    every = (ROOT / "create_all_unlearning_models.sh").read_text()
    named = re.search(r'ALL="([^"]*)"', every)
    assert named is not None and named[1].split() == list(METHODS)


def test_one_model_per_method_a_failure_and_what_is_complete(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    project = copy_project(tmp_path / "project")
    tiny_models.save("gpt_neox", tmp_path / "tiny")
    for split in ("forget", "retain"):
        lines = [f"The {split} line {i}." for i in range(12)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    (tmp_path / "study.sh").write_text(
        f"BASE={tmp_path}/tiny\nFORGET_TEXT={tmp_path}/forget.txt\n"
        f"RETAIN_TEXT={tmp_path}/retain.txt\nUNLEARN_ga='--lr 1e-4'\nUNLEARN_rmu='--layer-id 9'\n"
    )

    def every(*words: str) -> subprocess.CompletedProcess[str]:
        script = str(project / "create_all_unlearning_models.sh")
        return shell(tmp_path, environment, script, "study.sh", *words, METHODS="ga rmu")

    first = every()
    assert first.returncode == 1 and "--layer-id 9" in first.stderr, first.stdout + first.stderr
    rows = [line.split() for line in first.stdout.splitlines()[-3:]]
    assert rows[0][:2] == ["model", "result"]
    assert rows[1][:2] == ["tiny__ga", "done"] and rows[2][:2] == ["tiny__rmu", "failed"]
    assert (project / "unlearned_models/tiny__ga/model.safetensors").is_file()
    assert every().stdout.splitlines()[-2].split()[:2] == ["tiny__ga", "skipped"]
    missing = shell(
        tmp_path, environment, str(project / "create_all_unlearning_models.sh"), "nothing"
    )
    assert missing.returncode == 2 and "miniature.sh" in missing.stderr
