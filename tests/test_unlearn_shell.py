"""run_unlearn.sh and create_all_unlearning_models.sh, with a `uv` that only starts this Python."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from conftest import copy_project

from model_diffs.core.command_line import parse
from model_diffs.core.methods import METHODS
from model_diffs.unlearning.settings import Options

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


def given(found: subprocess.CompletedProcess[str]) -> Options:
    """The options that `LAUNCHER=echo` shows unlearn.py to be started with."""
    assert found.returncode == 0, found.stderr
    script, *words = found.stdout.split()
    assert script.endswith("/unlearn.py")
    return parse(Options, words, None)


def test_environment_becomes_options(tmp_path: Path, environment: dict[str, str]) -> None:
    settings = {"LR": "2e-5", "BATCH_SIZE": "8", "LAYER_ID": "1,2", "OUTDIR": "$(touch${IFS}x)"}
    script = str(ROOT / "run_unlearn.sh")
    found = shell(tmp_path, environment, script, "rmu", "--force", LAUNCHER="echo", **settings)
    assert given(found) == Options(
        model="EleutherAI/deep-ignorance-unfiltered",
        method="rmu",
        lr=2e-5,
        batch_size=8,
        layer_id="1,2",
        outdir="$(touch${IFS}x)",
        force=True,
    )
    assert not (tmp_path / "x").exists()
    found = shell(tmp_path, environment, script, "ga", LAUNCHER="echo", MODEL="m")
    assert given(found) == Options(model="m", method="ga")
    assert shell(tmp_path, environment, script).returncode == 2


def test_every_option_with_a_value_can_be_set_in_the_environment(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    values: dict[str, Any] = {"model": "m", "layer_id": "1", "steering_coeff": "2.0", "seed": 7}
    values |= dict.fromkeys(
        ("forget_text", "retain_text", "questions", "outdir", "like", "push_to"), "x"
    )
    values |= {"lat_layer": "3"} | dict.fromkeys(("epochs", "warmup_steps", "lora_rank"), 3)
    values |= {"lat_step_size": 0.5, "eval_split": 0.2, "optimizer": "muon", "trainable": "mlp"}
    values |= {"logprob_reduction": "sum", "cb_target": "orthogonal", "save_dtype": "fp16"}
    values |= {"device": "cpu", "dtype": "bf16", "text": "x", "spectrum": "keep", "memory": "9"}
    values |= {"until": "hazard=0.5", "teacher": "x", "noise_share": 0.25, "pruned": 0.25}
    switches = ("force", "trust_remote_code", "gradient_checkpointing")
    for one in fields(Options):
        if one.name not in ("method", *switches, *values):
            values[one.name] = type(one.default)(9)
    named = {name.upper(): str(value) for name, value in values.items()}
    script = str(ROOT / "run_unlearn.sh")
    found = shell(tmp_path, environment, script, "cb", LAUNCHER="echo", **named)
    assert given(found) == Options(method="cb", **values)
    named["FORGET_DATA"] = "y"  # the former name; the present one wins
    found = shell(tmp_path, environment, script, "cb", LAUNCHER="echo", **named)
    assert given(found) == Options(method="cb", **values)


def test_help_names_methods_and_options(tmp_path: Path, environment: dict[str, str]) -> None:
    found = shell(tmp_path, environment, str(ROOT / "run_unlearn.sh"), "--help")
    assert found.returncode == 0, found.stderr
    for name in (*METHODS, "--steering-coeff"):
        assert name in found.stdout


STUDY = """
[models]
base = "{0}/tiny"
[texts]
forget = "{0}/forget.txt"
retain = "{0}/retain.txt"
[unlearn.ga]
lr = 1e-4
[unlearn.rmu]
layer-id = "9"
"""


@pytest.mark.study
def test_one_model_per_method_a_failure_and_what_is_complete(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    project = copy_project(tmp_path / "project")
    tiny_models.save("gpt_neox", tmp_path / "tiny")
    for split in ("forget", "retain"):
        lines = [f"The {split} line {i}." for i in range(12)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    (tmp_path / "study.toml").write_text(STUDY.format(tmp_path))
    script = str(project / "create_all_unlearning_models.sh")
    environment |= {"UV_NO_SYNC": "1", "UV_PROJECT_ENVIRONMENT": sys.prefix}
    environment |= {"METHODS": "ga rmu"}  # all ten: tests/test_unlearn.py

    first = shell(tmp_path, environment, script, "study.toml")
    assert first.returncode == 1 and "--layer-id 9" in first.stdout + first.stderr
    assert (project / "unlearned_models/tiny__ga/model.safetensors").is_file()
    assert not (project / "unlearned_models/tiny__rmu").exists()
    only = {**environment, "METHODS": "ga"}
    second = shell(tmp_path, only, script, "study.toml").stdout.splitlines()
    assert any("tiny__ga" in line and "skipped" in line for line in second)
    missing = shell(tmp_path, environment, script, "nothing")
    assert missing.returncode == 2 and "miniature" in missing.stderr
