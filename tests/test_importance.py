"""Importance of dimensions against one text at a time, token by token, and against differences."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn import functional

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import Tokens
from model_diffs.core.errors import BadInput
from model_diffs.importance import gradients, measuring
from model_diffs.importance.lenses import Neurons
from model_diffs.importance.options import Options
from model_diffs.models.sites import watch

FAMILIES = ("qwen2", "llama", "mistral", "mixtral", "gemma2", "gpt_neox")
LAYERS = (0, 2)
# Unequal lengths; the second has one token that predicts, the fourth none.
IDS = [
    [1, 20, 30, 40, 50, 60, 70],
    [1, 99],
    [5, 6, 7, 8],
    [44],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 200],
]
STARTS = [1, 1, 0, 0, 2]


def tokens() -> Tokens:
    return Tokens(IDS, STARTS, np.arange(len(IDS)), {})


def run(
    model: Any,
    pad_id: int = 0,
    lens: Any = None,
    layers: tuple[int, ...] = LAYERS,
    gradients: bool = False,
    **given: Any,
) -> measuring.Measured:
    by = "gradients" if gradients else "values"
    options = Options(**{"batch_size": 3, "aggregate_by": by, **given})
    reader = Reader("tiny", model)
    return measuring.measure(reader, tokens(), pad_id, lens or Neurons(), layers, options)


def blocks(model: Any) -> Any:
    return model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers


def mlp(block: Any) -> Any:
    return block.mlp if hasattr(block, "mlp") else block.block_sparse_moe


@contextmanager
def shifted(module: Any, shift: torch.Tensor, seen: list[torch.Tensor]) -> Iterator[None]:
    """Add `shift` to what a module gives, and keep it."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        first = (output[0] if isinstance(output, tuple) else output) + shift
        seen.append(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def summed_loss(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return functional.cross_entropy(
        logits, torch.tensor(ids[1:], dtype=torch.long), reduction="sum"
    )


def reference(model: Any, module: Any) -> dict[str, torch.Tensor]:
    """Texts one by one without padding, tokens one by one; the gradient by autograd at a shift."""
    values, slopes, predictions = [], [], 0
    for ids, start in zip(IDS, STARTS, strict=True):
        seen: list[torch.Tensor] = []
        width = model.config.hidden_size
        shift = torch.zeros(1, len(ids), width, dtype=model.dtype, requires_grad=True)
        with shifted(module, shift, seen):
            loss = summed_loss(model, ids)
        predictions += len(ids) - 1
        slope = torch.zeros_like(shift)
        if len(ids) > 1:
            (slope,) = torch.autograd.grad(loss, shift)
        for position in range(start, len(ids)):
            values.append(seen[0].detach()[0, position].double())
            slopes.append(slope[0, position].double())
    v, g = torch.stack(values), torch.stack(slopes)
    return {
        "values": torch.stack([v.mean(0), v.abs().mean(0)]),
        "gradients": torch.stack([g.sum(0), g.abs().sum(0)]) / predictions,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_means_equal_a_loop_over_texts_and_tokens(family: str) -> None:
    model = tiny_models.build(family, seed=3)
    expected = {i: reference(model, mlp(blocks(model)[i])) for i in LAYERS}
    for which in ("values", "gradients"):
        found = run(model, gradients=which == "gradients")
        for layer in LAYERS:
            scale = float(expected[layer][which].abs().max())
            np.testing.assert_allclose(
                found.means[layer] / scale, expected[layer][which] / scale, atol=1e-5
            )
    assert found.predictions == sum(len(ids) - 1 for ids in IDS)
    assert found.tokens == sum(map(len, IDS)) - sum(STARTS)
    loss = sum(summed_loss(model, ids).item() for ids in IDS if len(ids) > 1)
    assert found.mean_loss == pytest.approx(loss / found.predictions, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_residual_site_is_output_of_block(family: str) -> None:
    model = tiny_models.build(family, seed=4)
    expected = reference(model, blocks(model)[1])
    for which in ("values", "gradients"):
        found = run(model, layers=(1,), site="residual", gradients=which == "gradients")
        np.testing.assert_allclose(found.means[1], expected[which], rtol=1e-4, atol=1e-6)


def test_hidden_site_is_input_of_last_matrix() -> None:
    model = tiny_models.build("llama", seed=5)
    one = blocks(model)[1].mlp
    seen: list[torch.Tensor] = []
    handle = one.act_fn.register_forward_hook(lambda m, a, o: seen.append(o))
    up: list[torch.Tensor] = []
    other = one.up_proj.register_forward_hook(lambda m, a, o: up.append(o))
    rows = []
    with torch.no_grad():
        for ids, start in zip(IDS, STARTS, strict=True):
            model(input_ids=torch.tensor([ids]))
            rows.append((seen.pop() * up.pop())[0, start:])
    handle.remove(), other.remove()
    found = run(model, layers=(1,), site="mlp_hidden")
    np.testing.assert_allclose(found.means[1][1], torch.cat(rows).abs().mean(0), rtol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "opt"])
@pytest.mark.parametrize("gradients", [False, True])
def test_means_do_not_depend_on_batch_size_or_pad_token(family: str, gradients: bool) -> None:
    model = tiny_models.build(family, seed=6)
    alone = run(model, batch_size=1, gradients=gradients)
    for batch_size, pad_id in ((2, 7), (5, 0)):
        together = run(model, pad_id, batch_size=batch_size, gradients=gradients)
        for layer in LAYERS:
            scale = float(alone.means[layer].abs().max())
            apart = (together.means[layer] - alone.means[layer]).abs().max()
            assert float(apart) < 1e-5 * scale


# Gemma's norms compute in fp32 whatever the model's dtype: its steps must be larger.
@pytest.mark.parametrize(
    ("family", "size", "tolerance"), [("gpt_neox", 1e-4, 1e-4), ("gemma2", 4e-3, 1e-2)]
)
def test_signed_mean_gradient_is_derivative_of_mean_loss_by_a_shift(
    family: str, size: float, tolerance: float
) -> None:
    model = tiny_models.build(family, seed=7).double()
    predictions = sum(len(ids) - 1 for ids in IDS)
    found = run(model, layers=(1,), gradients=True).means[1][0]

    def mean_loss(dimension: int, step: float) -> float:
        total = 0.0
        for ids, start in zip(IDS, STARTS, strict=True):
            shift = torch.zeros(1, len(ids), tiny_models.HIDDEN, dtype=torch.float64)
            shift[:, start:, dimension] = step
            with torch.no_grad(), shifted(blocks(model)[1].mlp, shift, []):
                total += float(summed_loss(model, ids)) if len(ids) > 1 else 0.0
        return total / predictions

    for dimension in (0, 13, 31):
        slope = (mean_loss(dimension, size) - mean_loss(dimension, -size)) / (2 * size)
        assert float(found[dimension]) == pytest.approx(slope, rel=tolerance)


def test_all_layers_come_from_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("qwen2", seed=1)
    passes: list[int] = []
    blocks(model)[0].register_forward_hook(lambda *_: passes.append(1))
    backward: list[int] = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: (backward.append(1), real(*a))[1])
    run(model, layers=(0, 1, 2), batch_size=2, gradients=True)
    assert len(passes) == len(backward) == 3


def test_values_run_no_backward_no_head_and_no_later_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("not in a pass over values")

    model = tiny_models.build("llama", seed=1)
    monkeypatch.setattr(torch.autograd, "grad", never)
    monkeypatch.setattr(torch.Tensor, "backward", never)
    model.lm_head.register_forward_hook(never)
    blocks(model)[2].self_attn.register_forward_hook(never)
    assert run(model, layers=(0, 1)).means[1].shape == (2, tiny_models.HIDDEN)


def test_model_is_left_unchanged() -> None:
    model = tiny_models.build("llama", seed=1)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    run(model, gradients=True)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Stops(Neurons):
    """Raises KeyboardInterrupt while the second layer of a batch is added."""

    def __init__(self, batch: int) -> None:
        self.left = batch * len(LAYERS)

    def sums(self, *given: Any) -> torch.Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().sums(*given)


def test_interruption_keeps_finished_batches() -> None:
    model = tiny_models.build("llama", seed=2)
    lens = Stops(2)
    lens.left += 1
    found = run(model, lens=lens, batch_size=1)
    assert found.partial
    assert found.texts == 2
    order = measuring.batch_order(tokens(), batch_size=1, seed=42)
    finished = [rows[0] for rows in order[:2]]
    assert finished[0] == 4  # the longest first
    part = Tokens([IDS[i] for i in finished], [STARTS[i] for i in finished], np.arange(2), {})
    reader = Reader("tiny", model)
    whole = measuring.measure(reader, part, 0, Neurons(), LAYERS, Options(batch_size=1))
    assert not whole.partial
    for layer in LAYERS:
        np.testing.assert_allclose(found.means[layer], whole.means[layer], rtol=1e-12)
    with pytest.raises(KeyboardInterrupt):  # nothing is finished: nothing to keep
        run(model, lens=Stops(0))


def test_bad_models_and_texts_are_bad_input() -> None:
    broken = tiny_models.build("llama", seed=2)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(BadInput, match="layer 0 is not finite"):
        run(broken)
    with pytest.raises(BadInput, match="mixture of experts"):
        run(tiny_models.build("mixtral"), site="mlp_hidden")
    single = Tokens([[5], [6]], [0, 0], np.arange(2), {})
    reader = Reader("tiny", tiny_models.build("llama"))
    with pytest.raises(BadInput, match="nothing is predicted"):
        measuring.measure(reader, single, 0, Neurons(), LAYERS, Options(aggregate_by="gradients"))


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("entries", [1 << 22, 24, 1])
def test_loss_gradient_is_that_of_autograd_in_parts(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_diffs.models.loading import pad_batch

    monkeypatch.setattr(gradients, "_ENTRIES", entries)
    batch = pad_batch([[1, 2, 3, 4, 5], [6], [7, 2]], 0, torch.device("cpu"))
    logits = 3 * torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    summed = sum(
        functional.cross_entropy(
            logits[row, : len(ids) - 1], torch.tensor(ids[1:]), reduction="sum"
        )
        for row, ids in ((0, [1, 2, 3, 4, 5]), (2, [7, 2]))
    )
    (expected,) = torch.autograd.grad(summed, logits)
    loss, predictions, gradient = gradients.loss_gradient(logits.detach(), batch)
    assert loss == pytest.approx(float(summed.detach()), rel=1e-6) and predictions == 5
    torch.testing.assert_close(gradient, expected)


class Several(torch.nn.Module):
    """Takes more than states, and gives more."""

    def forward(self, hidden_states: Any, scale: Any, shift: float = 0.0) -> Any:
        return hidden_states * scale + shift, scale, "cache"


@pytest.mark.parametrize("named", [False, True])
def test_other_arguments_and_outputs_of_a_module_stay(named: bool) -> None:
    module, seen = Several(), []
    mlp: Any = SimpleNamespace(input_module=module, output_module=module, matrices={})
    anatomy: Any = SimpleNamespace(blocks=[module], mlps=[mlp])

    def receive(layer: int, x: torch.Tensor) -> torch.Tensor:
        seen.append((layer, x.item()))
        return x + 1

    def call() -> Any:
        x = torch.tensor(2.0)
        return module(hidden_states=x, scale=3, shift=0.5) if named else module(x, 3, 0.5)

    assert call() == (6.5, 3, "cache")
    for site, given, result in (
        ("mlp_in", 2.0, 9.5),
        ("mlp_out", 6.5, 7.5),
        ("residual", 6.5, 7.5),
    ):
        with watch(anatomy, site, [0], receive):
            assert call() == (result, 3, "cache")
        assert seen.pop() == (0, given) and not seen
    assert call() == (6.5, 3, "cache"), "hooks end with the block"


def test_frozen_parameters_learn_again_but_those_that_did_not() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with pytest.raises(KeyError), gradients.frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert model.weight.requires_grad and not model.bias.requires_grad


def test_longest_texts_come_first_and_the_rest_in_seeded_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = Tokens([[1] * n for n in range(1, 41)], [0] * 40, np.arange(40), {})
    order = measuring.batch_order(many, 2, seed=1)
    assert order[0] == [39, 38] or order[0] == [38, 39]
    lengths = [len(many.ids[rows[0]]) for rows in order]
    assert lengths != sorted(lengths, reverse=True)
    assert sorted(row for rows in order for row in rows) == list(range(40))
    assert order == measuring.batch_order(many, 2, seed=1) != measuring.batch_order(many, 2, 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(measuring.devices, "processes", lambda rank=rank: (rank, 2))
        shares.append(measuring.batch_order(many, 2, seed=1))
    firsts = sorted(row for share in shares for row in share[0])
    assert firsts == [36, 37, 38, 39], "each process begins with long ones"
    assert sorted(row for share in shares for rows in share for row in rows) == list(range(40))


def test_what_was_measured_is_counted() -> None:
    model = tiny_models.build("llama", seed=2)
    found = run(model, batch_size=2)
    assert (found.texts, found.asked_texts, found.predictions) == (5, 5, 0)
    assert found.mean_loss is None and not found.partial
    assert found.layer_seconds.keys() == set(LAYERS)
    assert 0 < sum(found.layer_seconds.values()) < found.seconds
    assert all(one.dtype == torch.float64 for one in found.means.values())


def test_numbers_of_two_processes_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama", seed=2)
    whole = run(model, batch_size=1, gradients=True)
    given: list[list[torch.Tensor]] = [[], []]
    for rank in (0, 1):
        monkeypatch.setattr(measuring.devices, "processes", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(
            measuring.devices,
            "sum_over_processes",
            lambda x, rank=rank: (given[rank].append(x), x)[1],
        )
        run(model, batch_size=1, gradients=True)
    totals = iter([a + b for a, b in zip(*given, strict=True)])
    monkeypatch.setattr(measuring.devices, "sum_over_processes", lambda _: next(totals))
    both = run(model, batch_size=1, gradients=True)
    assert (both.texts, both.tokens, both.predictions) == (5, whole.tokens, whole.predictions)
    assert both.mean_loss == pytest.approx(whole.mean_loss)
    for layer in LAYERS:
        torch.testing.assert_close(both.means[layer], whole.means[layer])
