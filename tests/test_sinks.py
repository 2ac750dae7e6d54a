"""Attention sinks: one planted at the first position is found, said and left out of both models."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_diffs.activations import passes, sinks, store
from model_diffs.activations.sinks import ratio_to_others, without_sinks
from model_diffs.core.options import Pass
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import execute
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.data.texts import read_splits
from model_diffs.diagnostics.activation_norms import norm_table
from model_diffs.models import loading

TEXTS = {
    "forget": ["The river at Ava is wide.", "Nets are mended.", "Seven weavers kept a ledger."],
    "retain": ["Birds sing at dawn.", "A ferry crosses.", "Bread, salt and slow water."],
}


def planted(folder: Path, seed: int = 0, size: float = 1e4) -> str:
    """A tiny model whose first position has a state `size` times as long."""
    tiny_models.save("gpt2", folder, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wpe.weight[0] *= size
    model.save_pretrained(folder)
    return str(folder)


def options(tmp_path: Path, **changed: object) -> Pass:
    for name, texts in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    given = {f"{name}_text": str(tmp_path / f"{name}.txt") for name in TEXTS}
    place = {"outroot": str(tmp_path / "outputs"), "device": "cpu", "dtype": "fp32"}
    return Pass(**{**given, **place, "max_samples": 0, **changed})


def tables(chosen: Pass, a: str, b: str) -> list[np.ndarray]:
    """Everything that steps 4, 8, 9 and 13 read of two models."""
    found = store.of_comparisons(chosen, [PlannedRun(Path("x"), "", {}, a, b)])
    names = ("norm_l2", "pooled", "mean", "spectrum")
    return [found.models["forget", model].read(name) for model in (a, b) for name in names]


def test_a_planted_sink_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = planted(tmp_path / "a")
    # The changed model has no sink: it is measured on the tokens of its base all the same.
    b = str(tiny_models.save("gpt2", tmp_path / "b", seed=1))
    found = tables(options(tmp_path), a, b)
    said = capsys.readouterr().err
    assert said.count("attention sink") == 1 and "--skip-first 0 keeps it" in said
    without, kept = (tables(options(tmp_path, skip_first=n), a, b) for n in (1, 0))
    for auto, one, all_of_it in zip(found, without, kept, strict=True):
        assert np.array_equal(auto, one) and not np.allclose(auto, all_of_it)
    record = store.statistics(options(tmp_path), [a]).models["forget", a].record()
    assert record["left_out"]["tokens"] == len(TEXTS["forget"])


def test_without_a_sink_every_position_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = str(tiny_models.save("gpt2", tmp_path / "a"))
    b = planted(tmp_path / "b")  # that of a changed model decides nothing
    found, kept = tables(options(tmp_path), a, b), tables(options(tmp_path, skip_first=0), a, b)
    assert all(np.array_equal(auto, one) for auto, one in zip(found, kept, strict=True))
    assert "left out of all" not in capsys.readouterr().err


def test_the_base_decides_for_models_taken_one_at_a_time(tmp_path: Path) -> None:
    """Otherwise two models' probes would be of other tokens, and could not be compared."""
    a, b = planted(tmp_path / "a"), str(tiny_models.save("gpt2", tmp_path / "b", seed=1))

    def tokens(**given: str) -> list[object]:
        found = store.statistics(options(tmp_path), [a, b], **given)
        return [found.models["forget", model].record()["tokens"] for model in (a, b)]

    plain, first = tokens(), len(TEXTS["forget"])
    assert plain[1] - plain[0] == first
    assert tokens(base=a) == [plain[0]] * 2 and tokens(base=b) == [plain[1]] * 2


def test_a_sink_would_drown_the_norms(tmp_path: Path) -> None:
    a, b = planted(tmp_path / "a"), planted(tmp_path / "b", seed=1)

    def mean_norm(**changed: object) -> float:
        found = store.statistics(options(tmp_path, **changed), [a, b], [(a, b)])
        table = norm_table(
            found.models["forget", a],
            found.models["forget", b],
            found.differences["forget", b],
            seed=0,
        )
        return float(table["model_a_norm_L2"].iloc[0])

    assert mean_norm() < 0.1 * mean_norm(skip_first=0)


def test_the_ratio_of_the_first_position_by_hand() -> None:
    norms = torch.tensor([[100.0, 1.0, 3.0, 9.0], [50.0, 2.0, 9.0, 9.0]])
    counted = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert ratio_to_others(norms, counted) == pytest.approx(75 / 2)
    assert ratio_to_others(norms, counted & (torch.arange(4) == 0)) == 0
    # Without the BOS position the next one is the first.
    assert ratio_to_others(norms, counted & (torch.arange(4) > 0)) == pytest.approx(1.5 / 3)


def test_steps_that_read_models_themselves_leave_it_out(tmp_path: Path) -> None:
    a = planted(tmp_path / "a")
    found = passes.of_splits(options(tmp_path), [a])[0]
    assert {start for one in found for start in one.tokens.starts} == {1}


def test_a_model_in_memory_is_not_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, chosen = planted(tmp_path / "a"), options(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(a)
    monkeypatch.setattr("model_diffs.models.loading.load_model", None)  # would fail
    found = passes.of_splits(chosen, [a], model)[0]
    assert {start for one in found for start in one.tokens.starts} == {1}


def test_beginnings_of_a_few_texts_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows in a text, and further texts, do not matter and are not read."""
    a, read = planted(tmp_path / "a"), []
    plain = loading.stream_states

    def stream(anatomy: Any, batch: Any, *rest: Any, **named: Any) -> None:
        read.append(tuple(batch.input_ids.shape))
        plain(anatomy, batch, *rest, **named)

    monkeypatch.setattr(loading, "stream_states", stream)
    monkeypatch.setattr(sinks, "POSITIONS", 6)
    monkeypatch.setattr(sinks, "SAMPLED", 2)
    chosen = options(tmp_path)
    splits = read_splits(chosen.forget_text, chosen.retain_text, 0)
    assert without_sinks(chosen, a, splits).skip_first == 1
    assert sum(texts for texts, _ in read) == 4 and max(length for _, length in read) == 6


def test_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, chosen = planted(tmp_path / "a"), options(tmp_path)
    splits = read_splits(chosen.forget_text, chosen.retain_text, 0)
    store.statistics(chosen, [a])
    monkeypatch.setattr(sinks, "_found", {})  # another process
    monkeypatch.setattr("model_diffs.models.loading.load_for", None)  # would fail
    assert without_sinks(chosen, a, splits).skip_first == 1
    given = dataclasses.replace(chosen, skip_first=0)
    assert without_sinks(given, a, splits) is given


def test_the_automatic_steering_coefficient_leaves_it_out(tmp_path: Path) -> None:
    a, chosen = planted(tmp_path / "a"), options(tmp_path)
    words = ["--model", a, "--method", "rmu", "--layer-id", "0,1", "--steering-coeff", "auto"]
    words += ["--forget-text", chosen.forget_text, "--retain-text", chosen.retain_text]
    words += ["--eval-split", "0", "--lr", "1e-9", "--outdir", str(tmp_path / "rmu")]
    execute(load_script(SCRIPTS / "unlearn.py"), words)
    record = json.loads((tmp_path / "rmu" / "unlearning.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(a)
    model = AutoModelForCausalLM.from_pretrained(a)
    expected = []
    for layer in (0, 1):
        norms = []
        for text in TEXTS["forget"]:
            with torch.no_grad():
                ids = torch.tensor([tokenizer(text)["input_ids"]])
                states = model(ids, output_hidden_states=True).hidden_states[layer + 1][0]
            norms += states[1:].norm(dim=-1).tolist()
        expected.append(2 * np.mean(norms))
    assert record["settings"]["steering"] == pytest.approx(expected, rel=1e-4)
    # The forget term is a mean over the other tokens: the target is twice as long as they are.
    first = record["losses"][0]["forget"]
    assert first < 10 * sum(c**2 for c in expected) / tiny_models.HIDDEN
