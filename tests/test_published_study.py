"""The published study fits the hardware that its header names, by the arithmetic of its steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.study
ROOT = Path(__file__).parents[1]
SHAPE = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 16384,
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}
MODELS = ("unfiltered", "e2e-strong-filter", "unfiltered-cb-lat")
LOADS = {"1", "4", "7", "8", "9", "10", "11", "12", "13", "14", "17"}


def hub(folder: Path, models: tuple[str, ...] = MODELS) -> Path:
    """A cache of the hub in which nothing of these models but config.json was downloaded."""
    for name in models:
        place = folder / f"models--EleutherAI--deep-ignorance-{name}"
        commit = "0" * 40
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        (place / "snapshots" / commit / "config.json").write_text(json.dumps(SHAPE))
    return folder


def dry_run(cache: Path, memory: str) -> str:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "model_diffs.pipeline", "deep-ignorance", "--dry-run"]
    found = subprocess.run(
        [*command, "--memory", memory], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dry_run(hub(tmp_path_factory.mktemp("hub")), "24,32")


def test_every_step_fits_24_and_32_gigabytes(told: str) -> None:
    assert "does not fit" not in told and "unknown" not in told
    assert f"memory:  {len(LOADS)} of {len(LOADS)} units that load models fit" in told
    said = re.findall(
        r"step (\d+)  would run:.*\n        needs about ([\d.]+) GB of the device", told
    )
    assert {number for number, _ in said} == LOADS
    assert all(float(amount) <= 24 for _, amount in said)
    # By no magic: a model of 6.9 B weights in bf16 is there in steps that run it whole.
    assert all(
        float(amount) > 13.7 for number, amount in said if number in ("11", "12", "14", "17")
    )


def test_a_smaller_device_is_told_what_would_fit(tmp_path: Path) -> None:
    told = dry_run(hub(tmp_path), "16,32")
    assert re.search(r"does not fit: 16\.00 GB of the device are free: use (--\S+|a larger)", told)


def test_an_unknown_shape_is_said(tmp_path: Path) -> None:
    told = dry_run(tmp_path, "24,32")
    model = "EleutherAI/deep-ignorance-unfiltered"
    assert f"an unknown amount of memory: no config.json of {model} is on this disk" in told
    assert f"of {len(LOADS)} nothing is known yet" in told


def test_one_configuration_stands_for_all_models_of_the_study(tmp_path: Path, told: str) -> None:
    """Models that are compared are of one architecture."""
    alone = dry_run(hub(tmp_path, ("unfiltered",)), "24,32")
    needs = re.compile(r"needs about .*")
    assert needs.findall(alone) == needs.findall(told)
