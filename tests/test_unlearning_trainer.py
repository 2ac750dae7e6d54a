"""The trainer: what a step sees, resumed runs, several processes, what is trained and saved."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import tiny_models
import torch
from accelerate import Accelerator

from model_diffs.core.errors import BadInput
from model_diffs.unlearning.data import SplitBatch, Tokens, plan_epoch, share_of, split_batch
from model_diffs.unlearning.losses import get_loss
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.optimizers import choose_trainable, make_optimizers
from model_diffs.unlearning.reference import AdapterOffReference, CachedReference, state_splits
from model_diffs.unlearning.settings import (
    OptimizerName,
    Settings,
    Training,
    parse_layers,
)
from model_diffs.unlearning.trainer import Trainer

SETTINGS = Settings(layers=(0, 1), steering=(2.0, 2.0), alpha=2.0)


def make_texts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 250) for _ in range(rng.randint(2, 12))] for _ in range(count)]


def make_trainer(
    method: str = "npo", settings: Settings = SETTINGS, forget: int = 9, **kwargs: Any
) -> Trainer:
    keep = {name: kwargs.pop(name) for name in ("resume", "arguments") if name in kwargs}
    network = Network(tiny_models.build("gpt_neox"))
    choose_trainable(network, kwargs.pop("trainable", "all"), (1,))
    options = Training(**{"lr": 1e-3, "batch_size": 2, **kwargs})
    return Trainer(
        network,
        get_loss(method),
        settings,
        options,
        Tokens(make_texts(forget, 1), make_texts(3, 2), {}),
        Tokens(make_texts(6, 3), make_texts(3, 4), {}),
        0,
        Accelerator(cpu=True),
        **keep,
    )


def trained(trainer: Trainer, folder: Path) -> dict[str, torch.Tensor]:
    trainer.train(trainer.make_reference(torch.float32, folder))
    return {n: w.detach().clone() for n, w in trainer.network.model.state_dict().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


# ── what a step sees ──────────────────────────────────────────────────────────────────────────────


def test_an_epoch_sees_every_text_of_the_longer_split() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(2, 90) for _ in range(101)]
    short = [rng.randint(2, 90) for _ in range(40)]
    steps = plan_epoch(lengths, short, 8, seed=1, epoch=0)
    seen = [i for step in steps for i in step.forget]
    assert set(seen) == set(range(101))
    assert len(seen) == 104
    retained = [i for step in steps for i in step.retain]
    counts = [retained.count(i) for i in range(40)]
    assert max(counts) - min(counts) <= 1
    assert all(len(step.forget) == len(step.retain) == 8 for step in steps)


def test_order_is_seeded_and_differs_between_epochs() -> None:
    lengths = list(range(2, 60))
    plans = {
        (seed, epoch): plan_epoch(lengths, lengths, 4, seed, epoch)
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert plans[1, 0] == plan_epoch(lengths, lengths, 4, 1, 0)
    assert len({str(plan) for plan in plans.values()}) == 4


def test_batches_hold_texts_of_similar_length() -> None:
    rng = random.Random(5)
    lengths = [rng.randint(2, 512) for _ in range(512)]
    steps = plan_epoch(lengths, [], 8, seed=1, epoch=0)
    padded = sum(max(lengths[i] for i in step.forget) * 8 for step in steps)
    assert padded < 1.1 * sum(lengths)  # in the order drawn it would be about 1.8
    first = [max(lengths[i] for i in step.forget) for step in steps[:16]]
    assert first != sorted(first)


def test_pairs_stay_together() -> None:
    steps = plan_epoch([3] * 7, [4] * 3, 2, seed=1, epoch=0, paired=True)
    pairs = {(f, r) for step in steps for f, r in zip(step.forget, step.retain, strict=True)}
    assert pairs == {(k, k % 3) for k in range(7)}


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_step_without_overlap(processes: int) -> None:
    step = list(range(8))
    shares = [share_of(step, 2, rank, processes) for rank in range(processes)]
    assert sorted(i for share in shares for batch in share for i in batch) == step
    assert {len(share) for share in shares} == {4 // processes}


def test_totals_count_the_whole_step() -> None:
    texts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    batch = split_batch(texts, [1], 0, torch.device("cpu"), [0, 1, 2])
    assert (batch.step_texts, batch.step_tokens) == (3, 9)
    assert batch.input_ids.tolist() == [[4, 5]]


# ── the reference ─────────────────────────────────────────────────────────────────────────────────


def test_reference_equals_the_base_in_any_batch(tmp_path: Path) -> None:
    trainer = make_trainer("rmu")
    reference = trainer.make_reference(torch.float32, tmp_path)
    assert isinstance(reference, CachedReference)
    for indices in ([0, 3], [5], [4, 1, 2]):
        batch = trainer.batch("retain", indices)
        with torch.no_grad():
            expected = trainer.network.states(batch, [0, 1])
        for layer in (0, 1):
            found = reference.states("retain", batch, layer)
            real = batch.attention_mask.bool()
            assert torch.allclose(found[real], expected[layer][real], atol=1e-5)
            assert bool((found[~real] == 0).all())


def test_large_cache_is_a_file_with_the_same_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_trainer("rmu").make_reference(torch.float32, tmp_path)
    monkeypatch.setattr("model_diffs.unlearning.reference.IN_MEMORY", 0)
    trainer = make_trainer("rmu")
    large = trainer.make_reference(torch.float32, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["reference_retain.bin"]
    batch = trainer.batch("retain", [0, 1])
    assert torch.equal(large.states("retain", batch, 1), small.states("retain", batch, 1))


def test_states_are_in_memory_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens, two blocks, four entries of two bytes."""
    for limit, files in ((80, []), (79, ["reference_retain.bin"])):
        monkeypatch.setattr("model_diffs.unlearning.reference.IN_MEMORY", limit)
        reference = CachedReference(torch.bfloat16, (0, 1), tmp_path)
        reference.reserve("retain", {3: 2, 5: 3}, 4)
        assert [file.name for file in tmp_path.iterdir()] == files
    assert (tmp_path / "reference_retain.bin").stat().st_size == 80


class Passes:
    """In place of a network: counts its passes, and how many were with the adapter off."""

    def __init__(self) -> None:
        self.made, self.off, self.is_off = 0, 0, False

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        self.is_off = True
        yield
        self.is_off = False

    def states(self, batch: SplitBatch, layers: list[int]) -> dict[int, torch.Tensor]:
        self.made, self.off = self.made + 1, self.off + self.is_off
        return {layer: torch.tensor([float(layer), len(batch.indices)]) for layer in layers}

    def log_probs(self, batch: SplitBatch) -> torch.Tensor:
        return self.states(batch, [7])[7]


def test_states_of_a_batch_come_from_one_pass_without_the_adapter() -> None:
    network, texts = Passes(), make_texts(4, 0)
    reference = AdapterOffReference(cast(Any, network), (0, 2), network.adapter_off)
    first, second = (split_batch(texts, rows, 0, torch.device("cpu")) for rows in ([0], [1, 2]))
    for number, batch in enumerate((first, second, first), start=1):
        for layer in (2, 0):
            found = reference.states("retain", batch, layer)
            assert found.tolist() == [layer, len(batch.indices)]
        assert network.made == network.off == number
    assert reference.log_probs("forget", second).tolist() == [7, 2]
    assert network.made == network.off == 4 and not network.is_off


@pytest.mark.parametrize("method", ["rmu", "cb", "cb_lat", "npo"])
def test_forget_states_are_compared_where_they_are_turned_away_from_the_base(method: str) -> None:
    loss = get_loss(method)
    own = () if method == "npo" else ("retain",)
    assert state_splits(loss, SETTINGS) == own
    turned = state_splits(loss, replace(SETTINGS, cb_target="orthogonal"))
    assert turned == ((*own, "forget") if "cb" in method else own)


def test_state_norms_equal_a_mean_over_tokens_text_by_text() -> None:
    trainer = make_trainer("rmu")
    texts = trainer.texts("forget")
    norms = (trainer.state_norms() or {})["forget"]
    for layer, norm in zip((0, 1), norms, strict=True):
        with torch.no_grad():
            by_text = [
                trainer.network.model(
                    input_ids=torch.tensor([ids]), output_hidden_states=True
                ).hidden_states[layer + 1][0]
                for ids in texts
            ]
        assert norm == pytest.approx(float(torch.cat(by_text).norm(dim=-1).mean()), rel=1e-5)


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    for method in ("npo", "rmu"):
        one = trained(make_trainer(method, batch_size=4), tmp_path)
        two = trained(make_trainer(method, batch_size=2, grad_accum_steps=2), tmp_path)
        assert largest_difference(one, two) < 1e-4


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_resumed_training_ends_at_the_same_weights(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: dict[str, Any] = {"epochs": 2, "optimizer": optimizer, "warmup_steps": 2}
    undisturbed = make_trainer(**numbers)
    expected = trained(undisturbed, tmp_path)
    keep: dict[str, Any] = {"resume": tmp_path / "resume", "arguments": {"lr": 1e-3}}
    killed = make_trainer(**numbers, **keep, checkpoint_every=3)
    step = killed._step

    def until_seven(number: int, *rest: Any) -> Any:
        if number == 7:
            raise KeyboardInterrupt
        return step(number, *rest)

    monkeypatch.setattr(killed, "_step", until_seven)
    with pytest.raises(KeyboardInterrupt):
        trained(killed, tmp_path)
    resumed = make_trainer(**numbers, **keep, checkpoint_every=3)
    found = trained(resumed, tmp_path)
    assert largest_difference(found, expected) == 0.0
    assert resumed.steps_log == undisturbed.steps_log


def test_state_of_other_arguments_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep: dict[str, Any] = {"resume": tmp_path / "resume", "checkpoint_every": 2}
    trained(make_trainer(**keep, arguments={"lr": 1}), tmp_path)
    other = make_trainer(**keep, arguments={"lr": 2})
    assert other._restore() == 0
    assert "other arguments" in capsys.readouterr().out


def test_non_finite_loss_ends_the_run_naming_the_step(tmp_path: Path) -> None:
    trainer = make_trainer("ga_simple", lr=1e30, grad_clip=0.0, optimizer="sgd")
    with pytest.raises(BadInput, match=r"became (nan|inf|-inf) at step 2 of 5"):
        trained(trainer, tmp_path)


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    before = tiny_models.build("gpt_neox").state_dict()
    trainer = make_trainer("ga", optimizer="sgd", lr=1.0, grad_clip=1e-3, forget=2)
    after = trained(trainer, tmp_path)
    moved = math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in after))
    assert len(trainer.steps) == 3
    assert trainer.steps_log[0].grad_norm > 1e-3
    # The rates of a cosine over three steps: 1, 3/4, 1/4.
    assert [log.lr for log in trainer.steps_log] == pytest.approx([1.0, 0.75, 0.25])
    assert moved <= 2e-3 * 1.001


def test_every_tenth_of_the_steps_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(make_trainer("ga", steps=21, forget=2), tmp_path)
    lines = [one for one in capsys.readouterr().out.splitlines() if one.startswith("step ")]
    of = [one.split(":")[0] for one in lines]
    assert of == [f"step {step}/21" for step in (*range(2, 21, 2), 21)]


def test_interval_evaluations_are_kept(tmp_path: Path) -> None:
    trainer = make_trainer("ga", eval_interval=2)
    trained(trainer, tmp_path)
    assert [one["step"] for one in trainer.evaluations] == [2, 4]
    last = trainer.evaluate()
    assert last["gap"] == pytest.approx(last["forget_NLL"] - last["retain_NLL"])


# ── what is trained ───────────────────────────────────────────────────────────────────────────────


def changed_names(trainer: Trainer, folder: Path) -> set[str]:
    before = tiny_models.build("gpt_neox").state_dict()
    after = trained(trainer, folder)
    return {name for name in after if not torch.equal(after[name], before[name])}


def test_only_the_chosen_blocks_change(tmp_path: Path) -> None:
    names = changed_names(make_trainer(trainable="layers"), tmp_path)
    assert names
    assert all(name.startswith("gpt_neox.layers.1.") for name in names)


def test_only_names_that_match_change(tmp_path: Path) -> None:
    names = changed_names(make_trainer(trainable=r"mlp\..*weight"), tmp_path)
    expected = {
        f"gpt_neox.layers.{i}.mlp.{part}.weight"
        for i in range(tiny_models.LAYERS)
        for part in ("dense_h_to_4h", "dense_4h_to_h")
    }
    assert names == expected


def test_rmu_changes_nothing_above_its_target_block(tmp_path: Path) -> None:
    names = changed_names(make_trainer("rmu"), tmp_path)
    above = [n for n in names if ".layers.2." in n or "final" in n or n.startswith("lm_head")]
    assert names
    assert not above


def test_muon_optimises_only_matrices_inside_blocks() -> None:
    network = Network(tiny_models.build("gpt_neox"))
    muon, adamw = make_optimizers("muon", network, 1e-3)
    names = {id(p): n for n, p in network.model.named_parameters()}
    taken = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    assert all(".layers." in name and name.endswith("weight") for name in taken)
    rest = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert names[id(network.model.get_output_embeddings().weight)] in rest
    assert len(taken) + len(rest) == len(names)


def test_a_pattern_that_matches_nothing_is_bad_input() -> None:
    network = Network(tiny_models.build("gpt_neox"))
    for pattern in ("no_such_part", "("):
        with pytest.raises(BadInput, match="--trainable"):
            choose_trainable(network, pattern, ())


@pytest.mark.parametrize("text", ["3", "0,-1", "x", ""])
def test_blocks_out_of_range_are_bad_input(text: str) -> None:
    with pytest.raises(BadInput, match="--layer-id"):
        parse_layers(text, 3)


def test_blocks_are_sorted_each_once() -> None:
    assert parse_layers("2,0,2", 3) == (0, 2)
