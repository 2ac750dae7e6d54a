"""Models carried block by block: the numbers of models side by side, in less memory."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.numpy import load_file

from model_diffs.activations import blocks, collecting, passes, sinks, store
from model_diffs.activations.skeleton import Flow, Skeleton
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Pass
from model_diffs.data.texts import read_splits
from model_diffs.models import devices, loading

FAMILIES = ["gpt_neox", "llama", "gpt2", "opt", "gemma3", "qwen2", "gemma2", "phi"]
LINES = {
    "forget": [
        "The river at Ava is wide.",
        "No.",
        "Seven weavers kept a very long ledger.",
        "Yes.",
    ],
    "retain": ["Birds sing at dawn in the old mill yard.", "A ferry.", "Bread and slow water."],
}


def options(folder: Path, **changed: object) -> Pass:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for split, lines in LINES.items():
        (folder / f"{split}.txt").write_text("\n".join(lines))
        texts[f"{split}_text"] = str(folder / f"{split}.txt")
    given = {"outroot": str(folder / "outputs"), "batch_size": 2, "device": "cpu", "dtype": "fp32"}
    given |= {"skip_first": 0}
    return Pass(**{**texts, **given, **changed})


def tensors(found: store.Statistics) -> dict[tuple[str, ...], np.ndarray]:
    """Everything that was saved."""
    saved = {("own", *key): one for key, one in found.models.items()}
    saved |= {("change", *key): one for key, one in found.differences.items()}
    return {
        (*key, name): value
        for key, one in saved.items()
        for name, value in load_file(one.path).items()
    }


def pair(family: str, folder: Path) -> tuple[str, str]:
    a, b = (str(tiny_models.save(family, folder / side, seed=i)) for i, side in enumerate("ab"))
    return a, b


@pytest.mark.parametrize(
    "family", [*FAMILIES[:5], *(pytest.param(f, marks=pytest.mark.study) for f in FAMILIES[5:])]
)
def test_numbers_are_those_of_models_side_by_side(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair(family, tmp_path)
    given = ([a, b], [(a, b)])
    one = tensors(store.statistics(options(tmp_path / "x", side_by_side="yes"), *given))
    monkeypatch.setattr(blocks, "SHARE", 0.0)  # a chunk for every batch
    other = tensors(store.statistics(options(tmp_path / "y", side_by_side="blocks"), *given))
    assert one.keys() == other.keys() and len(one) > 20
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, rtol=1e-6, atol=1e-6, err_msg=str(key))
    assert not list((tmp_path / "y" / "outputs").rglob("states*")), "nothing is cached on disk"


def test_one_block_of_one_model_has_weights_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair("llama", tmp_path)
    made: list[Skeleton] = []
    held: list[int] = []
    advance, opened = Flow.advance, Skeleton.open

    def keep(*given: object) -> Skeleton:
        made.append(opened(*given))
        return made[-1]

    def look(flow: Flow, index: int, block: torch.nn.Module) -> None:
        parameters = [p for one in made for p in one.model.parameters()]
        held.append(sum(p.numel() for p in parameters if not p.is_meta))
        assert held[-1] == sum(p.numel() for p in block.parameters())
        advance(flow, index, block)

    monkeypatch.setattr(Flow, "advance", look)
    monkeypatch.setattr(collecting.Skeleton, "open", keep)
    store.statistics(options(tmp_path / "x", side_by_side="blocks"), [a, b], [(a, b)])
    batches = 2 + 2
    assert len(held) == 2 * tiny_models.LAYERS * batches
    assert all(p.is_meta for one in made for p in one.model.parameters())


@pytest.mark.parametrize("free", [1e3, 1e12])
def test_models_that_do_not_fit_are_carried_by_blocks(
    free: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair("gpt_neox", tmp_path)
    ran: list[str] = []
    for module, name in ((collecting, "run_by_blocks"), (passes, "run_side_by_side")):
        run = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, run=run, name=name: (ran.append(name), run(*given))
        )
    monkeypatch.setattr(collecting.loading, "free_memory", lambda _: free)
    monkeypatch.setattr(passes, "check_memory", lambda *_: None)
    store.statistics(options(tmp_path / "x"), [a, b], [(a, b)])
    assert ran == ["run_by_blocks" if free == 1e3 else "run_side_by_side"]


def test_weights_that_are_joined_when_loaded_are_refused(tmp_path: Path) -> None:
    a = str(tiny_models.save("mixtral", tmp_path / "a"))
    with pytest.raises(BadInput, match=r"not stored as a tensor of its own.*--side-by-side no"):
        store.statistics(options(tmp_path / "x", side_by_side="blocks"), [a])


def test_a_sink_is_looked_for_without_loading_a_model_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair("llama", tmp_path)
    given = options(tmp_path / "x", skip_first=None)
    splits = read_splits(given.forget_text, given.retain_text, 0)
    whole = sinks._largest_ratio(given, a, splits, None)
    monkeypatch.setattr(devices, "free_memory", lambda _: 1e3)
    monkeypatch.setattr(loading, "load_for", None)
    assert sinks._largest_ratio(given, a, splits, None) == pytest.approx(whole, rel=1e-6)
