"""The pass of importance: seconds per layer, exact sums, and what several processes do."""

import time
from typing import Any

import pytest
import tiny_models
import torch
from test_importance import LAYERS, Stops, run

from model_diffs.importance import measuring


def test_each_layer_has_the_seconds_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one at each look: five batches, two looks for each layer."""
    looks = iter(range(10**6))
    monkeypatch.setattr(measuring, "_now", lambda _: float(next(looks)))
    begin = time.perf_counter()
    found = run(tiny_models.build("llama", seed=2), batch_size=1)
    assert found.layer_seconds == dict.fromkeys(LAYERS, 5.0)
    assert 0 < found.seconds < time.perf_counter() - begin


def test_the_clock_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(device.type))
    assert measuring._now(torch.device("cpu")) <= measuring._now(torch.device("cuda"))
    assert waited == ["cuda"]


def test_losses_of_batches_are_added_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    gradient = measuring.loss_gradient

    def keep(*given: Any) -> Any:
        found = gradient(*given)
        losses.append(found[0] + 1e-9 * len(losses))
        return (losses[-1], *found[1:])

    monkeypatch.setattr(measuring, "loss_gradient", keep)
    found = run(tiny_models.build("llama", seed=2), batch_size=1, gradients=True)
    assert len(losses) == 5 and found.mean_loss is not None
    assert found.mean_loss * found.predictions == pytest.approx(sum(losses), rel=1e-13)


def test_an_interruption_ends_the_run_of_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring.devices, "processes", lambda: (0, 2))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_models.build("llama", seed=2), lens=Stops(2), batch_size=1)
