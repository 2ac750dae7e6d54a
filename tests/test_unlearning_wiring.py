"""What feeds the losses: each number of a run acts, by the amount that it says.

Plain gradient descent without clipping shows a wrong scale of a gradient; adaptive optimisers hide
it.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from accelerate import Accelerator

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import Split
from model_diffs.unlearning import data
from model_diffs.unlearning.data import Pair, Tokens, plan_epoch, split_batch
from model_diffs.unlearning.losses import get_loss, random_direction
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import attach_adapter, choose_trainable, make_optimizers
from model_diffs.unlearning.reference import AdapterOffReference, CachedReference
from model_diffs.unlearning.settings import Settings, Training
from model_diffs.unlearning.trainer import StepLog, Trainer

CPU = torch.device("cpu")
SETTINGS = Settings(layers=(0, 1), steering=(2.0, 3.0), alpha=2.0, retain_weight=1.5, seed=7)


class OneOf(Accelerator):
    """One of several processes that do not speak to each other."""

    place, count = 0, 1

    @property
    def process_index(self) -> int:
        return self.place

    @property
    def num_processes(self) -> int:
        return self.count

    @property
    def is_main_process(self) -> bool:
        return self.place == 0

    def reduce(self, tensor: torch.Tensor, reduction: str = "mean", scale: float = 1.0) -> Any:
        assert reduction == "sum", "shares of a step add up"
        return tensor


def make_texts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 250) for _ in range(rng.randint(2, 9))] for _ in range(count)]


def make_trainer(method: str, rank: int = 0, processes: int = 1, **options: Any) -> Trainer:
    """A trainer by plain gradient descent in fp64, 7 forget and 4 retain texts."""
    accelerator = OneOf(cpu=True)
    accelerator.place, accelerator.count = rank, processes
    settings = options.pop("settings", SETTINGS)
    training = {"lr": 0.05, "batch_size": 2, "grad_clip": 0.0, "optimizer": "sgd", **options}
    forget = Tokens(make_texts(7, 1), make_texts(3, 2), {})
    retain = Tokens(make_texts(4, 3), make_texts(2, 4), {})
    network = Network(tiny_models.build("gpt_neox").double())
    loss = get_loss(method)
    return Trainer(network, loss, settings, Training(**training), forget, retain, 0, accelerator)


def weights_of(trainer: Trainer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trainer.network.parameters()]


def trained(trainer: Trainer, folder: Path) -> list[torch.Tensor]:
    trainer.train(trainer.make_reference(torch.float64, folder))
    return weights_of(trainer)


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """The factor of the rate at a step from 0: linear warm-up, then half a cosine."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


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


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────


def split_of(texts: list[str]) -> Split:
    return Split("forget", Path("forget.txt"), texts)


def test_held_out_texts_are_a_seeded_share() -> None:
    tokenizer = tiny_models.tokenizer("gpt_neox")  # one token per byte
    words = ["a" * n for n in range(2, 22)]
    tokens = data.tokenise(tokenizer, split_of(["x", *words]), 15, 0.25, seed=1)
    assert (len(tokens.train), len(tokens.held_out)) == (15, 5)
    lengths = sorted(len(ids) for ids in (*tokens.train, *tokens.held_out))
    assert lengths == [*range(2, 15), *[15] * 7]
    for part in (tokens.train, tokens.held_out):
        assert [len(ids) for ids in part] == sorted(len(ids) for ids in part), "order of the file"
    facts = tokens.facts
    assert (facts["trained_on"], facts["held_out"], facts["left_out_single_token"]) == (15, 5, 1)
    assert facts["at_max_length"] == 7
    assert facts["tokens"] == sum(map(len, tokens.train))
    again, other = (data.tokenise(tokenizer, split_of(["x", *words]), 15, 0.25, s) for s in (1, 2))
    assert again == tokens and other.held_out != tokens.held_out
    assert len(data.tokenise(tokenizer, split_of(words), 15, 0.001, 1).held_out) == 1
    assert data.tokenise(tokenizer, split_of(words), 15, 0.0, 1).held_out == []
    assert len(data.tokenise(tokenizer, split_of(["aa", "bb"]), 15, 0.1, 1).train) == 1


def test_texts_that_leave_none_to_train_on_are_refused() -> None:
    tokenizer = tiny_models.tokenizer("gpt_neox")
    for texts, share in ((["aa"], 0.1), (["a", "b"], 0.0)):
        with pytest.raises(BadInput, match=r"forget\.txt: \d usable texts leave none"):
            data.tokenise(tokenizer, split_of(texts), 15, share, 1)


def test_texts_are_sorted_within_windows_only() -> None:
    order = list(range(100))[::-1]
    batches = data._bucketed(order, lambda i: i, 2, random.Random(0))
    window = 32
    assert [len(batch) for batch in batches] == [2] * 50
    for start in range(0, 100, window):
        members = batches[start // 2 : (start + window) // 2]
        assert sorted(i for batch in members for i in batch) == sorted(
            order[start : start + window]
        )
        assert all(b[1] == b[0] + 1 for b in members), "neighbours in length"
        assert members != sorted(members), "and in random order"


def test_cycling_draws_no_more_than_it_needs() -> None:
    one, other = random.Random(0), random.Random(0)
    assert data._cycled(5, 10, one) == [*other.sample(range(5), 5), *other.sample(range(5), 5)]
    assert one.random() == other.random()


def test_pairs_are_bucketed_by_the_length_of_both() -> None:
    forget, retain = [1, 9] * 16, [9, 1] * 8 + [1, 9] * 8
    steps = plan_epoch(forget, retain, 4, seed=1, epoch=0, paired=True)
    sums = [{forget[f] + retain[r] for f, r in zip(*step, strict=True)} for step in steps]
    assert sorted(map(sorted, sums)) == sorted([[10]] * 4 + [[2]] * 2 + [[18]] * 2)
    assert sum(len(step.forget) for step in steps) == 32
    short = plan_epoch([3] * 3, [4] * 7, 2, seed=1, epoch=0, paired=True)
    pairs = {(f, r) for step in short for f, r in zip(*step, strict=True)}
    assert pairs == {(k % 3, k) for k in range(7)}


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


# ── the loop around a step ────────────────────────────────────────────────────────────────────────


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
