"""What feeds the losses: each number of a run acts, by the amount that it says.

Plain gradient descent without clipping shows a wrong scale of a gradient; adaptive optimisers hide
it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from small_trainer import (
    CPU,
    SETTINGS,
    cosine_rate,
    make_trainer,
    trained,
    weights_of,
)

from model_diffs.unlearning.data import Pair, Tokens, plan_epoch, split_batch
from model_diffs.unlearning.losses import get_loss, random_direction
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import attach_adapter, choose_trainable, make_optimizers
from model_diffs.unlearning.reference import AdapterOffReference, CachedReference
from model_diffs.unlearning.settings import Settings

# ── training ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["npo", "rmu", "ga_simple", "dpo", "finetune"])
def test_training_is_gradient_descent_on_the_loss_of_each_step(method: str, tmp_path: Path) -> None:
    """Two epochs in order, accumulated batches, warm-up and cosine, against a plain loop."""
    trainer = make_trainer(method, epochs=2, grad_accum_steps=2, warmup_steps=1)
    network, loss = Network(tiny_models.build("gpt_neox").double()), get_loss(method)
    splits = {"forget": trainer.forget.train, "retain": trainer.retain.train}
    texts = {name: splits.get(name, splits["retain"]) for name in loss.trains_on}
    lengths = [[len(ids) for ids in one] for one in texts.values()]
    reference = make_trainer(method).make_reference(torch.float64, tmp_path)
    planned = [
        step
        for epoch in (0, 1)
        for step in plan_epoch(*[*lengths, []][:2], 4, SETTINGS.seed, epoch, loss.paired)
    ]
    steps = [dict(zip(texts, step, strict=False)) for step in planned]
    assert trainer.steps == steps and len(steps) == (2 if method == "finetune" else 4)
    losses = []
    for number, step in enumerate(steps):
        pair = Pair(**{name: split_batch(texts[name], step[name], 0, CPU) for name in texts})
        terms = loss.compute(network, pair, reference, SETTINGS)
        weights = list(network.parameters())
        gradients = torch.autograd.grad(terms.loss, weights, allow_unused=True)
        rate = 0.05 * cosine_rate(number, len(steps), 1)
        square = sum(float(g.square().sum()) for g in gradients if g is not None)
        parts = (terms.loss, terms.forget, terms.retain)
        losses.append((number + 1, *map(float, parts), math.sqrt(square), rate))
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight -= rate * gradient
    for found, expected in zip(trained(trainer, tmp_path), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-7, atol=1e-9)
    for log, expected in zip(trainer.steps_log, losses, strict=True):
        assert log == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["npo", "rmu"])
def test_two_processes_make_the_step_of_one(method: str, tmp_path: Path) -> None:
    """Wrappers average the gradients of processes: the mean of their steps is the whole step."""
    options: dict[str, Any] = {"grad_accum_steps": 2}
    one = make_trainer(method, batch_size=4, **options)
    before = weights_of(one)
    both = [make_trainer(method, rank, 2, **options) for rank in (0, 1)]
    assert both[0].steps == both[1].steps == one.steps
    for trainer in (one, *both):
        reference = make_trainer(method).make_reference(torch.float64, tmp_path)
        trainer._step(1, trainer.steps[0], reference)
    mean = [(a + b) / 2 for a, b in zip(*map(weights_of, both), strict=True)]
    moved = 0.0
    for start, found, expected in zip(before, mean, weights_of(one), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        moved += float((expected - start).norm())
    assert moved > 1e-3
    logs = [trainer.steps_log[0] for trainer in (one, *both)]
    assert logs[1].loss + logs[2].loss == pytest.approx(logs[0].loss, rel=1e-6)
    assert sum(trainer.tokens for trainer in both) == one.tokens


def test_processes_use_disjoint_texts_of_each_step() -> None:
    whole = make_trainer("rmu", batch_size=4)
    shares = [make_trainer("rmu", rank, 2) for rank in (0, 1)]
    for step in whole.steps:
        own = [[i for one in s._passes(step) for i in one["forget"]] for s in shares]
        assert sorted(own[0] + own[1]) == sorted(step["forget"]) and len(own[0]) == 2
    assert sorted({*shares[0].used("forget"), *shares[1].used("forget")}) == list(range(7))
    assert shares[0].used("retain") == sorted(set(shares[0].used("retain")))


def test_clipping_scales_the_step_to_its_limit(tmp_path: Path) -> None:
    free, bound = make_trainer("ga"), make_trainer("ga", grad_clip=1e-3)
    before = weights_of(free)
    reference = free.make_reference(torch.float64, tmp_path)
    logs = [trainer._step(1, trainer.steps[0], reference) for trainer in (free, bound)]
    assert logs[0].grad_norm == pytest.approx(logs[1].grad_norm)
    lengths = [
        math.sqrt(
            sum(
                float((a - b).square().sum())
                for a, b in zip(weights_of(trainer), before, strict=True)
            )
        )
        for trainer in (free, bound)
    ]
    assert lengths[0] == pytest.approx(0.05 * logs[0].grad_norm, rel=1e-6)
    assert lengths[1] == pytest.approx(0.05 * 1e-3, rel=1e-3)


def test_the_seed_decides_the_order_and_the_directions(tmp_path: Path) -> None:
    trainers = [make_trainer("rmu", settings=Settings(layers=(1,), steering=(2.0,), seed=s))
                for s in (7, 7, 8)]  # fmt: skip
    assert trainers[0].steps == trainers[1].steps != trainers[2].steps
    of = [(1, 7, "rmu"), (2, 7, "rmu"), (1, 8, "rmu"), (1, 7, "cb")]
    directions = torch.stack([random_direction(32, *words) for words in of])
    assert torch.equal(directions[0], random_direction(32, *of[0]))
    products = directions @ directions.T
    torch.testing.assert_close(products.diag(), torch.ones(4))
    assert float((products - torch.eye(4)).abs().max()) < 0.7, "each has its own"


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


def test_evaluation_equals_a_loop_over_held_out_texts() -> None:
    trainer = make_trainer("ga", batch_size=1)
    found = trainer.evaluate()
    expected = []
    for texts in (trainer.forget.held_out, trainer.retain.held_out):
        total = count = 0.0
        for ids in texts:
            logits = trainer.network.model(input_ids=torch.tensor([ids])).logits[0].detach()
            table = logits.log_softmax(-1)
            total -= float(table[range(len(ids) - 1), ids[1:]].sum())
            count += len(ids) - 1
        expected.append(total / count)
    assert found["forget_NLL"] == pytest.approx(expected[0], rel=1e-6)
    assert found["retain_NLL"] == pytest.approx(expected[1], rel=1e-6)
    assert found["gap"] == pytest.approx(expected[0] - expected[1], rel=1e-4)
    trainer.retain = Tokens(trainer.retain.train, [], {})
    assert trainer.evaluate() == {**found, "retain_NLL": None, "gap": None}


def test_processes_measure_each_held_out_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_trainer("ga", batch_size=1)
    texts = whole.forget.held_out * 2  # three batches of two texts
    parts: list[dict[int, float]] = []

    def gathered(values: list[dict[int, float]]) -> list[dict[int, float]]:
        parts.extend(values)
        return [dict.fromkeys(range(len(texts)), 0.0), *values]  # the others' texts count nothing

    monkeypatch.setattr("model_diffs.unlearning.measuring.gather_object", gathered)
    whole.forget = Tokens([], texts, {})
    expected = whole.evaluate()["forget_NLL"]
    parts.clear()
    found = []
    for rank in (0, 1):
        trainer = make_trainer("ga", rank, 2, batch_size=1)
        trainer.forget, trainer.retain = whole.forget, Tokens([], [], {})
        found.append(trainer.evaluate()["forget_NLL"])
    assert sorted(row for part in parts for row in part) == list(range(len(texts)))
    assert all(parts) and sum(found) == pytest.approx(expected, rel=1e-9)


def test_tokens_and_progress_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer("ga", epochs=6, eval_interval=10)
    trained(trainer, tmp_path)
    lengths = [[len(ids) for ids in split.train] for split in (trainer.forget, trainer.retain)]
    tokens = [
        sum(lengths[0][i] for i in step["forget"]) + sum(lengths[1][i] for i in step["retain"])
        for step in trainer.steps
    ]
    assert len(trainer.steps) == 24 and trainer.tokens == sum(tokens)
    assert 0 < trainer.seconds < 60
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    steps = [int(line.split()[1].split("/")[0]) for line in said]
    assert steps == list(range(2, 25, 2))
    assert said[0].startswith("step 2/24: loss ")
    assert [one["step"] for one in trainer.evaluations] == [10, 20]


def test_norms_are_of_the_first_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_diffs.unlearning.trainer.NORM_TEXTS", 3)
    trainer = make_trainer("rmu")
    norms = trainer.state_norms()
    assert norms is not None
    for split, texts in (("forget", trainer.forget.train), ("retain", trainer.retain.train)):
        batch = split_batch(texts, range(3), 0, CPU)
        with torch.no_grad():
            states = trainer.network.states(batch, [0, 1])
        expected = [
            float(h[batch.attention_mask.bool()].norm(dim=-1).mean()) for h in states.values()
        ]
        assert norms[split] == pytest.approx(expected, rel=1e-9)
    assert make_trainer("npo").state_norms() is None


# ── optimisers and adapters ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "adafactor"])
def test_no_optimiser_moves_a_weight_without_gradient(name: Any) -> None:
    network = Network(tiny_models.build("gpt_neox"))
    before = [p.detach().clone() for p in network.parameters()]
    for optimizer in make_optimizers(name, network, 0.1):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_rates_of_the_optimisers() -> None:
    """Root mean square of a first move: AdamW's is the rate, Muon's of a matrix 0.2 of it."""
    generator = torch.Generator().manual_seed(0)
    (adafactor,) = make_optimizers("adafactor", Network(tiny_models.build("gpt_neox")), 0.02)
    assert [float(group["lr"]) for group in adafactor.param_groups] == [0.02]
    for name in ("adamw", "muon"):
        network = Network(tiny_models.build("gpt_neox"))
        before = {n: p.detach().clone() for n, p in network.named_parameters()}
        for weight in network.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        for optimizer in make_optimizers(name, network, 0.01):  # type: ignore[arg-type]
            assert [group["lr"] for group in optimizer.param_groups] == [0.01]
            optimizer.step()
        for weight_name, weight in network.named_parameters():
            rms = float((weight.detach() - before[weight_name]).square().mean().sqrt())
            inside = ".layers." in weight_name and weight.ndim == 2
            if name == "muon" and inside:  # its orthogonal matrix is one to a fifth or so
                assert rms == pytest.approx(0.0018, rel=0.2), weight_name
            else:
                assert rms == pytest.approx(0.01, rel=1e-3), weight_name


def test_only_weights_that_are_trained_have_an_optimiser() -> None:
    network = Network(tiny_models.build("gpt_neox"))
    choose_trainable(network, r"layers\.0\.mlp.*weight", ())
    wanted = {p for p in network.parameters() if p.requires_grad}
    for name in ("sgd", "adafactor", "adamw"):
        (optimizer,) = make_optimizers(name, network, 0.1)  # type: ignore[arg-type]
        assert {p for group in optimizer.param_groups for p in group["params"]} == wanted
    (muon,) = make_optimizers("muon", network, 0.1)
    assert isinstance(muon, torch.optim.Muon), "no matrix is left for AdamW"
    choose_trainable(network, "embed_in", ())
    (adamw,) = make_optimizers("muon", network, 0.1)
    assert isinstance(adamw, torch.optim.AdamW), "the embedding is no matrix inside a block"


def test_an_adapter_is_seeded_and_scaled_by_two() -> None:
    pytest.importorskip("peft")
    made = {}
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        model = tiny_models.build("gpt_neox")
        adapter = attach_adapter(model, 5, seed)
        made[run] = {n: p for n, p in adapter.named_parameters() if "lora_A" in n}
        scales = [m.scaling["default"] for m in adapter.modules() if hasattr(m, "lora_A")]
        assert set(scales) == {2.0}
    assert len(made["a"]) == 4 * tiny_models.LAYERS, "every linear layer of the blocks"
    assert all(p.shape[0] == 5 for p in made["a"].values())
    assert all(torch.equal(p, made["b"][n]) for n, p in made["a"].items())
    assert not any(torch.equal(p, made["c"][n]) for n, p in made["a"].items())
    assert attach_adapter(model, 0, 3) is None


# ── the reference ─────────────────────────────────────────────────────────────────────────────────


def test_a_cache_keeps_the_dtype_and_place_of_each_text(tmp_path: Path, monkeypatch: Any) -> None:
    trainer = make_trainer("dpo")
    reference = trainer.make_reference(torch.float64, tmp_path)
    with torch.no_grad():
        for split in ("forget", "retain"):
            for index in trainer.used(split):
                batch = trainer.batch(split, [index])
                found = reference.log_probs(split, batch)
                expected = trainer.network.log_probs(batch)
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    kept = CachedReference(torch.float16, [0, 2], tmp_path)
    # 11 tokens of two states of 32 numbers of two bytes.
    for limit, in_memory in ((11 * 2 * 32 * 2, True), (11 * 2 * 32 * 2 - 1, False)):
        monkeypatch.setattr("model_diffs.unlearning.reference.IN_MEMORY", limit)
        kept.reserve("retain", {0: 4, 2: 7}, 32)
        assert (tmp_path / "reference_retain.bin").exists() != in_memory
    batch = trainer.batch("retain", [2, 0])
    lengths = batch.attention_mask.sum(1).tolist()
    kept.reserve("retain", dict(zip((2, 0), lengths, strict=True)), 32)
    kept.fill(trainer.network, "retain", batch, "states")
    with torch.no_grad():
        expected = trainer.network.states(batch, [2])[2]
    found = kept.states("retain", batch, 2)
    assert found.dtype == torch.float16
    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[real].double(), expected[real], rtol=1e-3, atol=1e-3)


def test_without_the_adapter_one_pass_serves_all_blocks_of_a_batch() -> None:
    from contextlib import contextmanager

    trainer = make_trainer("rmu")
    network, off = trainer.network, []

    @contextmanager
    def adapter_off() -> Iterator[None]:
        off.append(True)
        yield

    reference = AdapterOffReference(network, [0, 1], adapter_off)
    one, other = trainer.batch("retain", [0, 1]), trainer.batch("retain", [2])
    for batch in (one, other):
        expected = network.states(batch, [0, 1])
        for layer in (0, 1):
            found = reference.states("retain", batch, layer)
            assert not found.requires_grad
            torch.testing.assert_close(found, expected[layer].detach())
    assert len(off) == 2
    log_probs = reference.log_probs("retain", one)
    assert len(off) == 3 and not log_probs.requires_grad
    torch.testing.assert_close(log_probs, network.log_probs(one).detach())
