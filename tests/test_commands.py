"""Command lines and snippets of docs/commands.md: each is parsed by its script, and runs."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_importance_scripts
import torch

from model_diffs.core.command_line import parse
from model_diffs.core.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
place = test_importance_scripts.place


def blocks(page: str) -> list[list[str]]:
    return [found.split("\n")[:-1] for found in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]


COMMANDS = [line for block in blocks(PAGE) for line in block]


def script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(path).stem] = module
    spec.loader.exec_module(module)
    return module


def test_no_command_is_missing() -> None:
    assert [len(block) for block in blocks(PAGE)] == [15, 7, 27]


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_accepted_as_typed(line: str) -> None:
    words = shlex.split(line)
    while "=" in words[0]:
        words.pop(0)
    while words[0] in ("uv", "run", "--script", "python"):
        words.pop(0)
    name, *rest = words
    assert (ROOT / name).is_file()
    if name.endswith(".py"):
        options = getattr(script(name), "Options", None)
        if options is not None:
            parse(options, rest, None)
        else:
            assert not rest
    elif name == "./run_unlearn.sh":
        assert rest[0] in METHODS
    else:
        help_text = subprocess.run([ROOT / name, "--help"], capture_output=True, text=True,
                                   env={**os.environ, "UV_PROJECT_ENVIRONMENT": sys.prefix,
                                        "UV_NO_SYNC": "1"})  # fmt: skip
        assert help_text.returncode == 0 and all(word in help_text.stdout for word in rest)


# ── snippets ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def result(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both modes and both normalisations, and a file of its own."""
    monkeypatch.setattr("model_diffs.importance.running.figures", lambda *_: ())
    words = test_importance_scripts.given(
        place, "--save_outputs", "--outroot", str(tmp_path), "--aggregation_mode", "both"
    )
    words += ["--normalize_gradients", "both", "--save_consolidated", str(tmp_path / "my.npz")]
    name = "layer_gradient_analysis"
    assert test_importance_scripts.run(name, words, monkeypatch) == 0
    (folder,) = (tmp_path / "importance").iterdir()
    return folder


def test_results_load_in_all_documented_ways(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"layer_{i}_{m}_norm_{n}" for i in range(3) for m in ("mean", "mean_abs")
            for n in ("sum", "sum_abs")]  # fmt: skip
    for file in (result / "consolidated_results.npz", tmp_path / "my.npz"):
        data = np.load(file, allow_pickle=True)
        metadata = json.loads(data["metadata"].item())
        for key in ("model_name", "aggregate_by", "power", "normalization_mode"):
            assert key in metadata
        assert set(metadata["dimension_sizes"].values()) == {32}
        assert {key for key in data if key != "metadata"} == set(keys)
    monkeypatch.syspath_prepend(str(ROOT / "important_acts_ftrs"))
    for module in ("sae_gradient_analysis", "layer_gradient_analysis"):
        load = importlib.import_module(module).load_results
        for path in (str(result), str(tmp_path / "my.npz")):
            found = load(path)
            np.testing.assert_array_equal(found["data"][keys[0]], data[keys[0]])
            assert found["metadata"]["model_name"] == metadata["model_name"]
    for key in keys:
        np.testing.assert_array_equal(np.load(result / f"{key}_gradients.npy"), data[key])
    config = json.loads((result / "metadata.json").read_text())["analysis_config"]
    assert [config[key] for key in ("aggregate_by", "power", "normalization_mode")] == [
        *("values", None, "both")
    ]


def test_diffing_is_used_as_documented(tmp_path: Path) -> None:
    import itda_study

    study = itda_study.make(tmp_path)
    from diff import ModelDiffing

    diffing = ModelDiffing(
        itda_path=str(study.root / "itda"), model_name=study.model_a, layer=itda_study.LAYER,
        device="cpu", seq_len=256, batch_size=4,
    )  # fmt: skip
    results = diffing.run_model_diffing(
        initial_model_name=study.model_a, fine_tuned_model_name=study.model_b,
        evaluation_dataset=itda_study.files(study)[0], max_steps=2,
    )  # fmt: skip
    indices, differences = results["sorted_indices"], results["activation_differences"]
    assert torch.equal(results["sorted_differences"], differences[indices])
    assert results["activations_M"] is not None and results["activations_MD"] is not None
