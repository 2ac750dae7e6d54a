"""diff.py and ModelDiffing: what they give and write, and what they refuse."""

import json
import sys
from typing import Any

import pandas as pd
import pytest
import tiny_models
import tiny_study
import torch
from itda_study import LAYER, diffing, edited, files, make

import diff
from diff import ModelDiffing
from model_diffs.core import results
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute
from model_diffs.core.step import planned_runs
from model_diffs.dictionaries.itda import ITDA


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    return make(tmp_path_factory.mktemp("diffing"))


def test_run_model_diffing_returns_the_documented_mapping(study: tiny_study.Study) -> None:
    found = diffing(study).run_model_diffing(study.model_a, study.model_b, files(study)[0], 2)
    assert torch.equal(
        found["sorted_differences"], found["activation_differences"][found["sorted_indices"]]
    )
    assert (found["sorted_differences"].diff() <= 0).all()
    change = torch.zeros_like(found["activation_differences"])
    for key, sign in (("activations_M", -1), ("activations_MD", 1)):
        kept = found[key]
        assert kept.documents.unique().tolist() == list(range(14))  # 2 batches of 7
        order = kept.documents * 1000 + kept.positions
        assert (order.diff() > 0).all()
        dense = torch.zeros(len(order), len(found["sorted_indices"]), dtype=torch.float64)
        dense.scatter_add_(1, kept.indices, kept.values.double())
        change = change + sign * dense.mean(0)
    assert torch.allclose(change, found["activation_differences"], atol=1e-6)
    lean = diffing(study).run_model_diffing(
        study.model_a, study.model_b, files(study)[0], 2, keep_activations=False
    )
    assert lean["activations_M"] is None and lean["activations_MD"] is None


def plan(words: list[str]) -> list[results.PlannedRun]:
    return planned_runs(diff, parse(diff.Options, words, None))


def words(study: tiny_study.Study, *models: str) -> list[str]:
    return [
        *("--itda", str(study.root / "itda"), "--model-a", study.model_a, "--model-b", *models),
        *("--outroot", str(study.root / "outputs"), "--device", "cpu", "--dataset", *files(study)),
    ]


def test_script_writes_a_folder_per_comparison(
    study: tiny_study.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    other = edited(study, "scaled", lambda t: t["gpt_neox.embed_in.weight"].mul_(1.5))
    execute(diff, words(study, study.model_b, other))
    assert "fits rmu worse: FVU" in capsys.readouterr().out
    planned = plan(words(study, study.model_b, other))
    folder = study.root / "outputs" / "base__to__base__rmu" / "itda_diffing"
    assert planned[0].folder == folder
    assert all(results.state(one).status == "complete" for one in planned)
    names = {"latents.csv", "shares.csv", "summary.json", "itda_diffing.png", "examples.html"}
    names.add("run.json")
    assert {file.name for file in folder.iterdir()} == names
    table = pd.read_csv(folder / "latents.csv")
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    assert (table["difference"].diff().dropna() <= 0).all()
    assert sorted(table["latent"]) == list(range(len(table)))
    assert not table.drop(columns=["p_value", "q_value", "token"]).isna().any().any()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["fits_worse"] and set(summary["fvu"]) == {"all", "forget", "retain"}
    before = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "run.json"}
    execute(diff, [*words(study, study.model_b), "--force"])
    assert before == {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "run.json"}
    # A dictionary that is trained again makes its comparisons stale.
    atoms = study.root / "itda" / "atoms.safetensors"
    content = atoms.read_bytes()
    atoms.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert {results.state(one).status for one in plan(words(study, study.model_b))} == {"stale"}
    atoms.write_bytes(content)
    assert {results.state(one).status for one in plan(words(study, study.model_b))} == {"complete"}


def test_compare_dictionaries_prints_the_jaccard_index(
    study: tiny_study.Study,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(study.root / "itda")
    monkeypatch.setattr(sys, "argv", ["diff.py", "--compare-dictionaries", folder, folder])
    diff.start()
    assert "Jaccard index 1.0000" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--model-a is missing"):
        plan(["--itda", "a"])


def test_mismatched_models_and_dictionaries_are_refused_in_one_line(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="a dictionary of layer 1, not 2"):
        ModelDiffing(study.root / "itda", study.model_a, 2, "cpu")
    with pytest.raises(BadInput, match="no such dictionary"):
        ModelDiffing(study.root / "none", study.model_a, LAYER, "cpu")
    other = str(tiny_models.save("llama", study.root / "llama"))
    with pytest.raises(BadInput, match="another tokenizer"):
        ModelDiffing(study.root / "itda", other, LAYER, "cpu")
    wide = str(tiny_models.save("gpt_neox", study.root / "wide", hidden_size=48))
    opened = diffing(study)
    reading = opened.read(files(study))
    with pytest.raises(BadInput, match="hidden_size is 32"):
        opened.compare(study.model_a, [wide], reading)
    with pytest.raises(BadInput, match="48 wide and the dictionary's atoms 32"):
        opened.compare(wide, [wide], reading)
    shallow = str(tiny_models.save("gpt_neox", study.root / "shallow", num_hidden_layers=1))
    with pytest.raises(BadInput, match="blocks 0 to 0: there is no layer 1"):
        opened.compare(shallow, [shallow], reading)
    with pytest.raises(BadInput, match="--max-steps 1 ends before retain"):
        opened.compare(study.model_a, [study.model_b], reading, max_steps=1)
    with pytest.raises(BadInput, match="no such text file"):
        opened.read([str(study.root / "missing.txt")])

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ITDA, "encode", full)
    with pytest.raises(BadInput, match="--batch-size 7: try --batch-size 3"):
        opened.compare(study.model_a, [study.model_b], reading)
