"""The example on the miniature: of what rmu made fall most, most is of hazard contexts."""

import json
import subprocess
import sys

import pytest
from conftest import Study

pytestmark = [pytest.mark.study, pytest.mark.xdist_group("study")]


def test_hazard_contexts_lead_where_they_were_steered_away(study: Study) -> None:
    unlearned = "unlearned_models/miniature-base__rmu"
    found = subprocess.run(
        [sys.executable, "example_diffing.py", "--unlearned", unlearned],
        cwd=study.root,
        env=study.environment(),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "hazard contexts" in found.stdout
    folder = study.root / "outputs/example_diffing"
    shares = {}
    for changed in ("miniature-filtered", "miniature-base__rmu"):
        place = folder / f"miniature-base__to__{changed}/itda_diffing/summary.json"
        fell = json.loads(place.read_text())["contexts_of_top_latents"]["fell"]
        assert fell["latents"] == 20
        assert f"{fell['share']['forget']:.0%} of 20" in found.stdout
        shares[changed] = fell["share"]["forget"] - fell["chance"]["forget"]
    assert shares["miniature-base__rmu"] > 0.2
