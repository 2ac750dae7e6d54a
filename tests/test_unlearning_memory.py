"""Less memory, the same model: parts of batches, and frozen weights held as they are stored."""

from pathlib import Path

import pytest
import tiny_models
import tiny_study
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_unlearning_wiring import CPU, make_trainer, weights_of

from model_diffs.core.script import execute
from model_diffs.core.step import load_script
from model_diffs.data.texts import length_batches
from model_diffs.models import held, loading
from model_diffs.unlearning import data, running
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import (
    attach_adapter,
    choose_trainable,
    freeze_unread,
    merge_adapter,
)

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(LENGTHS, st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_parts_hold_every_text_once_and_no_more_tokens_than_allowed(
    lengths: list[int], most: int
) -> None:
    count = data.parts_needed([lengths], most)
    parts = data.cut([*range(len(lengths))], count)
    assert [i for part in parts for i in part] == [*range(len(lengths))]
    sizes = [len(part) * max(lengths[i] for i in part) for part in parts]
    single = count == len(lengths)  # a text is not cut
    assert most == 0 or single or max(sizes) <= most
    if 1 < count < len(lengths) or (single and count > 1):  # not more parts than are needed
        fewer = data.cut(lengths, count - 1)
        assert max(len(part) * max(part) for part in fewer) > most


@given(LENGTHS, st.integers(1, 5), st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_measured_batches_keep_to_the_tokens_too(lengths: list[int], size: int, most: int) -> None:
    batches = length_batches(lengths, size, most)
    assert sorted(i for batch in batches for i in batch) == [*range(len(lengths))]
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) <= size and (most == 0 or padded <= most or len(batch) == 1)


@pytest.mark.parametrize("method", ["npo", "dpo", "rmu", "cb", "cb_lat"])
def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path: Path, method: str) -> None:
    """In fp64 the order of sums is all that differs."""
    whole, cut = (make_trainer(method, batch_size=4, batch_tokens=most) for most in (0, 12))
    assert len(whole._passes(whole.steps[0])) == 1 < len(cut._passes(cut.steps[0]))
    before = weights_of(whole)
    logs = [
        one._step(1, one.steps[0], one.make_reference(torch.float64, tmp_path))
        for one in (whole, cut)
    ]
    moved = 0.0
    for expected, found, start in zip(weights_of(whole), weights_of(cut), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
        moved = max(moved, float((expected - start).abs().max()))
    assert moved > 1e-4
    assert logs[0].loss == pytest.approx(logs[1].loss, rel=1e-6)


def test_what_no_loss_reads_has_no_gradient_all_the_same() -> None:
    """Freezing takes nothing from rmu that it had: the blocks above its target, norm and head."""
    trainer = make_trainer("rmu", settings=make_trainer("rmu").settings)
    trainer.train(trainer.make_reference(torch.float64, Path()))
    pair = data.Pair(*(trainer.batch(split, range(4)) for split in ("forget", "retain")))
    reference = trainer.make_reference(torch.float64, Path())
    trainer.network(trainer.loss.compute, pair, reference, trainer.settings).loss.backward()
    reached = {n for n, p in trainer.network.named_parameters() if p.grad is not None}
    choose_trainable(trainer.network, "all", ())
    freeze_unread(trainer.network, trainer.settings.layers)
    left = {n for n, p in trainer.network.named_parameters() if p.requires_grad}
    assert left == reached and any(".layers.2." in n for n, _ in trainer.network.named_parameters())


def test_rmu_on_a_base_in_half_precision_makes_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held weights against all weights in fp32: every byte of what is saved."""
    tiny_study.make(tmp_path)
    base = str(tiny_models.save("gpt_neox", tmp_path / "half", dtype="bfloat16"))
    words = ["--model", base, "--method", "rmu", "--layer-id", "0", "--steps", "2"]
    words += ["--forget-text", f"{tmp_path}/forget.txt", "--retain-text", f"{tmp_path}/retain.txt"]
    saved, dtypes = [], []

    def narrow(model: str, place: torch.device, trust_remote_code: bool) -> torch.nn.Module:
        return loading.load_model(model, place, torch.float32, trust_remote_code)

    def watched(network: Network, *_: object) -> None:
        dtypes.append({p.dtype for p in network.parameters()})

    monkeypatch.setattr(running, "check_head", watched)
    for name in ("held", "wide"):
        if name == "wide":
            monkeypatch.setattr(running, "load_narrow", narrow)
        script = load_script(tiny_study.ROOT / "unlearn.py")
        execute(script, [*words, "--device", "cpu", "--outdir", str(tmp_path / name)])
        saved.append(load_file(tmp_path / name / "model.safetensors"))
    assert dtypes == [{torch.float32, torch.bfloat16}, {torch.float32}]
    for name, tensor in saved[1].items():
        assert torch.equal(saved[0][name], tensor), name


def test_an_adapter_is_added_to_held_weights_before_they_are_rounded(tmp_path: Path) -> None:
    base = str(tiny_models.save("llama", tmp_path / "half", dtype="bfloat16"))
    model = loading.load_narrow(base, CPU)
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    adapter = attach_adapter(model, 2, seed=0)
    held.hold(model)
    assert held.holds(model)
    name = "model.layers.0.mlp.up_proj"
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.1)
    delta = layer.get_delta_weight("default").detach().float()
    merged = merge_adapter(adapter, torch.bfloat16)
    found = merged.get_parameter(f"{name}.weight")
    assert delta.abs().max() > 1e-2
    assert torch.equal(found, (before[f"{name}.weight"] + delta).bfloat16())
    other = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(merged.get_parameter(other).float(), before[other])
