"""The benchmark of 6.9 B parameters runs every step, at a fiftieth of its size, on a CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.study,
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmark forks"),
]
ROOT = Path(__file__).parents[1]
ROUNDED = 0.05  # seconds and floors are printed to a tenth
sys.path.insert(0, str(ROOT))
from benchmarks import full_size  # noqa: E402


def test_every_step_runs_and_is_set_against_its_floor(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "full_size.py"), "--scale", "0.02"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(
        [*command, "--place", str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    row = r"^(\d+) +([\d.]+) +([\d.]+|–) +([\d.]+|–) +([\d.]+) +([\d.]+)$"
    rows = re.findall(row, found.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == list(full_size.SCRIPTS)
    for step, seconds, floor, ratio, device, host in rows:
        assert float(device) == 0 and 0.1 < float(host) < 8
        if full_size.FLOORS.get(step, "all") and float(floor) > 0:  # not rounded to nothing
            low, high = (float(seconds) + way * ROUNDED for way in (-1, 1))
            below, above = (float(floor) + way * ROUNDED for way in (-1, 1))
            assert low / above - ROUNDED <= float(ratio) <= high / below + ROUNDED
    for folder in ("base__to__filtered/lipschitzness", "base/linear_probes", "base/relearning"):
        assert (tmp_path / "outputs" / folder / "run.json").is_file()


def test_the_shape_is_that_of_the_published_models() -> None:
    """6.9 B weights, as GPT-NeoX counts them."""
    shape = full_size.shape(1.0)
    hidden, inner, blocks = (shape[n] for n in ("hidden_size", "intermediate_size",
                                                "num_hidden_layers"))  # fmt: skip
    assert (hidden, inner, blocks) == (4096, 16384, 32)
    weights = 2 * shape["vocab_size"] * hidden + blocks * (4 * hidden**2 + 2 * hidden * inner)
    assert weights == pytest.approx(6.9e9, rel=0.01)
