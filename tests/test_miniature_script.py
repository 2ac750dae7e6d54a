"""create_miniature.py: what is there is kept, what changed is made again."""

import json
import shutil

import pytest

import create_miniature
from model_diffs.core import results, script
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.miniature import world

WORDS = ["--steps", "2", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """An empty folder to work in, and a world of 10 agents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(world.Size.__new__, "__defaults__", (12, 10, 6))
    return tmp_path


def run(*words):
    script.execute(create_miniature, [*WORDS, *words])


def planned(*words):
    chosen = parse(create_miniature.Options, [*WORDS, *words], None)
    return create_miniature.planned_runs(chosen)


def finished(folder):
    return (folder / results.RECORD).stat().st_mtime_ns


@pytest.mark.study
def test_only_missing_folders_are_made_again(in_folder, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run()
    assert [results.state(one).status for one in planned()] == ["complete"] * 4
    data, base, filtered, reseeded = (one.folder for one in planned())
    card = (filtered / "README.md").read_text()
    assert "| hazard, heldout | 20 |" in card
    before = [finished(data), finished(base), (base / "model.safetensors").read_bytes()]
    weights_before = (filtered / "model.safetensors").read_bytes()
    assert weights_before != before[2] != (reseeded / "model.safetensors").read_bytes()

    shutil.rmtree(filtered)
    run()
    assert [finished(data), finished(base), (base / "model.safetensors").read_bytes()] == before
    assert (filtered / "model.safetensors").read_bytes() == weights_before
    assert AutoModelForCausalLM.from_pretrained(base).config.model_type == "gpt_neox"
    same = [AutoTokenizer.from_pretrained(m)("The river")["input_ids"] for m in (base, filtered)]
    assert same[0] == same[1]

    capsys.readouterr()
    run()
    assert capsys.readouterr().out.count("complete, skipped") == 4


def test_changed_setting_makes_models_stale_and_keeps_texts(in_folder):
    create_miniature.make_texts(planned()[:1], create_miniature.Options())
    states = [results.state(one).status for one in planned("--lr", "1e-3")]
    assert states == ["complete", *["missing"] * 3]
    assert results.state(planned("--seed", "1")[0]).status == "complete"
    assert results.state(planned("--world-seed", "1")[0]).status == "stale"
    assert [one.label for one in planned("--texts-only")] == ["miniature texts"]
    assert "miniature texts" not in [one.label for one in planned("--models-only")]
    with pytest.raises(BadInput, match="choose one"):
        planned("--models-only", "--texts-only")
    named = [one.label for one in planned("--models", "scrambled", "base")]
    assert named == ["miniature texts", "miniature-scrambled", "miniature-base"]


def test_only_models_of_other_texts_are_made_again_with_the_texts(in_folder, monkeypatch):
    """Models are looked at once more when texts were made that were missing at the start."""
    made = []

    def make_models(todo, chosen):
        for one in todo:
            made.append(one.label)
            with results.open_run(one) as opened:
                opened.reads(f"data/miniature/corpus_{one.arguments['corpus']}.txt")

    monkeypatch.setattr(create_miniature, "make_models", make_models)
    run()
    record = in_folder / "models/miniature-filtered/run.json"
    content = json.loads(record.read_text())
    content["inputs"][0]["sha256"] = "of other texts"
    record.write_text(json.dumps(content))
    shutil.rmtree("data/miniature")
    assert [results.state(one).status for one in planned()] == ["missing", *["complete"] * 3]
    run()
    labels = ["miniature-base", "miniature-filtered", "miniature-reseeded"]
    assert made == [*labels, "miniature-filtered"]
    assert [results.state(one).status for one in planned()] == ["complete"] * 4


def test_unknown_device_is_one_line_and_nothing_is_trained(in_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["create_miniature.py", "--device", "abacus"])
    with pytest.raises(SystemExit) as stopped:
        script.run_step(create_miniature.__name__)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (in_folder / "models").exists()
