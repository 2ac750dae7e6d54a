"""The loop around a step of unlearning: its order, what it says, what it keeps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_trainer import OneOf, make_trainer, trained, weights_of

from model_diffs.core.errors import BadInput
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import choose_trainable
from model_diffs.unlearning.reference import AdapterOffReference, CachedReference
from model_diffs.unlearning.trainer import StepLog, Trainer


def test_a_number_of_steps_takes_epochs_one_after_the_other() -> None:
    whole, cut = make_trainer("npo", epochs=2), make_trainer("npo", steps=6)
    assert len(whole.steps) == 8 and cut.steps == whole.steps[:6]
    assert len(make_trainer("npo", steps=2).steps) == 2


def test_only_the_last_batch_of_a_step_is_synchronised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("npo", grad_accum_steps=3, batch_size=1)
    reference = trainer.make_reference(torch.float64, tmp_path)
    events: list[str] = []
    no_sync, backward = trainer.accelerator.no_sync, trainer.accelerator.backward

    def without(passage: Any) -> Any:
        events.append("alone")
        return no_sync(passage)

    def back(loss: Any) -> None:
        events.append("backward")
        backward(loss)

    monkeypatch.setattr(trainer.accelerator, "no_sync", without)
    monkeypatch.setattr(trainer.accelerator, "backward", back)
    trainer._step(1, trainer.steps[0], reference)
    assert events == ["alone", "backward", "alone", "backward", "backward"]


@pytest.mark.parametrize(("wanted", "enabled"), [(None, False), (True, True), (False, False)])
def test_blocks_are_recomputed_where_asked_for(
    wanted: bool | None, enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("ga", gradient_checkpointing=wanted)
    asked: list[bool] = []
    real = trainer.network.checkpointed
    monkeypatch.setattr(trainer.network, "checkpointed", lambda on: (asked.append(on), real(on))[1])
    trained(trainer, tmp_path)
    assert asked == [enabled], "on the CPU not by itself"


def test_the_state_is_kept_every_so_many_steps_but_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[Path, int, Any]] = []

    def save(folder: Path, state: Any, arguments: Any) -> None:
        saved.append((folder, len(state["log"]), arguments))
        assert {*state["weights"]} == {name for name, p in names if p.requires_grad}
        assert len(state["parts"]) == 2, "optimiser and schedule"

    monkeypatch.setattr("model_diffs.unlearning.checkpointing.save_state", save)
    for every, steps, kept in ((2, 6, [2, 4]), (3, 7, [3, 6]), (9, 6, []), (0, 6, [])):
        trainer = make_trainer("ga", steps=steps, checkpoint_every=every)
        choose_trainable(trainer.network, "mlp", ())
        names = [*trainer.network.named_parameters()]
        trainer.resume, trainer.arguments = tmp_path / "resume", {"lr": 1}
        saved.clear()
        trained(trainer, tmp_path)
        assert saved == [(tmp_path / "resume", step, {"lr": 1}) for step in kept]


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer("ga")
    reference = trainer.make_reference(torch.float64, tmp_path)
    weight = trainer.network.blocks[0].mlp.dense_h_to_4h.weight
    with torch.no_grad():
        weight[0, 0] = torch.inf
    before = weights_of(trainer)
    with pytest.raises(BadInput, match=r"became nan at step 3 of 4: nothing is saved"):
        trainer._step(3, trainer.steps[0], reference)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(trainer), strict=True))
    assert not trainer.steps_log


class Bar:
    """A progress bar that remembers."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bool]] = []
        self.moved: list[int] = []

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.shown.append((text, refresh))

    def update(self, steps: int) -> None:
        self.moved.append(steps)


def test_the_bar_shows_the_terms_and_the_speed_of_all_processes() -> None:
    trainer, bar = make_trainer("ga", 0, 2), Bar()
    trainer.tokens = 300
    trainer._report(bar, StepLog(1, 0.5, -1.25, 1.75, 2.0, 0.05), 4.0)
    line = "loss 0.5, forget -1.25, retain 1.75, grad_norm 2, lr 0.05"
    assert bar.shown == [(f"{line}, 150 tok/s", False)] and bar.moved == [1]


@pytest.mark.parametrize(("steps", "said"), [(4, [1, 2, 3, 4]), (23, [*range(2, 24, 2), 23])])
def test_about_ten_lines_and_the_last_are_said(
    steps: int, said: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer("ga", eval_interval=steps)
    trainer.steps = trainer.steps[:1] * steps
    for number in range(1, steps + 1):
        trainer._report(Bar(), StepLog(number, 0.5, 0.0, 0.0, 2.0, 0.05), 4.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *(f"step {number}/{steps}" for number in said), "evaluation",
    ]  # fmt: skip


def test_the_speed_is_over_the_time_since_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elapsed: list[float] = []
    monkeypatch.setattr(Trainer, "_report", lambda self, bar, log, time: elapsed.append(time))
    trainer = make_trainer("ga", steps=3)
    trained(trainer, tmp_path)
    assert 0 < elapsed[0] < elapsed[1] < elapsed[2] <= trainer.seconds


def test_a_norm_that_nobody_knows_is_not_taken_for_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("ga")
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda weights, limit: None)
    with pytest.raises(BadInput, match="gradient norm became nan"):
        trainer._step(1, trainer.steps[0], trainer.make_reference(torch.float64, tmp_path))


def test_processes_wait_until_the_state_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(
        "model_diffs.unlearning.checkpointing.save_state", lambda *_: events.append("saved")
    )
    for rank, expected in ((0, ["saved", "waited"]), (1, ["waited"])):
        trainer = make_trainer("ga", rank, 2, checkpoint_every=1)
        monkeypatch.setattr(
            trainer.accelerator, "wait_for_everyone", lambda: events.append("waited")
        )
        trainer._keep(1)
        assert events == expected
        events.clear()


def test_one_process_speaks_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        make_trainer("ga", rank, 2).say(f"of {rank}")
    assert capsys.readouterr().out == "of 0\n"


def test_norms_are_said_with_their_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    norms = make_trainer("rmu").state_norms() or {}
    said = capsys.readouterr().out.splitlines()
    for line, (split, values) in zip(said, norms.items(), strict=True):
        shown = ", ".join(f"{value:.4g}" for value in values)
        assert line == f"mean ‖h‖ after blocks 0, 1, {split}: {shown}"


def test_time_adds_up(tmp_path: Path) -> None:
    trainer = make_trainer("ga", steps=1)
    assert trainer.seconds == trainer.tokens == 0
    trained(trainer, tmp_path)
    first = trainer.seconds
    trained(trainer, tmp_path)
    assert trainer.seconds > first > 0


def test_with_an_adapter_the_base_is_the_model_without_it(tmp_path: Path) -> None:
    trainer = make_trainer("rmu")
    off = object()
    trainer.adapter = SimpleNamespace(disable_adapter=off)
    reference = trainer.make_reference(torch.float64, tmp_path)
    assert isinstance(reference, AdapterOffReference)
    assert reference.adapter_off is off and reference.layers == [0, 1]
    assert reference.network is trainer.network


def test_only_what_a_loss_reads_of_the_base_is_made(tmp_path: Path) -> None:
    for method, log_probs, states in (
        ("npo", {"forget"}, set()),
        ("dpo", {"forget", "retain"}, set()),
        ("rmu", set(), {"retain"}),
        ("ga", set(), set()),
    ):
        reference = make_trainer(method).make_reference(torch.float64, tmp_path)
        assert isinstance(reference, CachedReference)
        assert {split for split, _ in reference._sums} == log_probs
        assert {split for split, _ in reference._states} == states


def test_sharded_weights_compute_under_an_autocast_without_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, Any, bool]] = []

    def look(network: Network) -> None:
        kind = torch.get_autocast_dtype("cpu")
        seen.append((torch.is_autocast_enabled("cpu"), kind, torch.is_autocast_cache_enabled()))

    for precision, on in (("bf16", True), ("no", False)):
        monkeypatch.setattr(OneOf, "mixed_precision", precision)
        monkeypatch.setattr(Network, "unshard", lambda self: None, raising=False)
        trainer = make_trainer("ga")
        assert trainer.sharded and trainer.passage is trainer.network
        assert type(trainer.optimizers[0]) is torch.optim.SGD, "not wrapped"
        trainer.passage(look)
        assert seen[-1][0] == on
        if on:
            assert seen[-1][1:] == (torch.bfloat16, False)
    monkeypatch.undo()
    assert not make_trainer("ga").sharded


def test_what_was_kept_is_taken_up_only_where_states_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep: dict[str, Any] = {"steps": 6, "eval_interval": 2}
    first = make_trainer("ga", checkpoint_every=4, **keep)
    first.resume, first.arguments = tmp_path / "resume", {"lr": 1}
    first.train(first.make_reference(torch.float64, tmp_path))
    capsys.readouterr()
    for every, done in ((4, 4), (0, 0)):
        again = make_trainer("ga", checkpoint_every=every, **keep)
        again.resume, again.arguments = first.resume, first.arguments
        assert again._restore() == done
        assert again.steps_log == first.steps_log[:done]
        assert [one["step"] for one in again.evaluations] == [2, 4][: done // 2]
        assert ("resumed after step 4 of 6" in capsys.readouterr().out) == bool(done)


def test_a_process_with_fewer_batches_passes_its_last_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharded weights need equally many passes on all processes."""
    trainer, filled = make_trainer("rmu", batch_size=1), []
    monkeypatch.setattr(
        "model_diffs.unlearning.trainer.gather_object", lambda own: [own[0], own[0] + 2]
    )
    fill = CachedReference.fill

    def count(self: Any, network: Network, split: str, batch: Any, what: str) -> None:
        filled.append(batch.indices)
        fill(self, network, split, batch, what)

    monkeypatch.setattr(CachedReference, "fill", count)
    trainer.make_reference(torch.float64, tmp_path)
    assert sorted(i for indices in filled[:2] for i in indices) == [0, 1, 2, 3]
    assert filled[2:] == [filled[1]] * 2
