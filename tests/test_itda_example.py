"""The example on the miniature: of what fell most, most is of hazard contexts."""

import json
import subprocess
import sys

import pytest
from conftest import Study

pytestmark = [pytest.mark.study, pytest.mark.xdist_group("study")]


@pytest.mark.parametrize("method", ["rmu"])
def test_hazard_contexts_lead_among_latents_that_fell(study: Study, method: str) -> None:
    unlearned = f"unlearned_models/miniature-base__{method}"
    found = subprocess.run(
        [sys.executable, "example_diffing.py", "--unlearned", unlearned],
        cwd=study.root,
        env=study.environment(),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "hazard contexts" in found.stdout
    for changed in ("miniature-filtered", f"miniature-base__{method}"):
        folder = study.root / f"outputs/example_diffing/miniature-base__to__{changed}/itda_diffing"
        fell = json.loads((folder / "summary.json").read_text())["contexts_of_top_latents"]["fell"]
        assert fell["latents"] == 20
        assert fell["share"]["forget"] > fell["chance"]["forget"] + 0.2
        assert f"{fell['share']['forget']:.0%} of 20" in found.stdout
