"""The relearning attack against a plain loop: its rate, batches, clipping, and where it stops."""

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from model_diffs.attacks import relearning
from model_diffs.attacks.material import LORA_RANK, Attack, Material
from model_diffs.data.questions import Question
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.loading import load_tokenizer
from model_diffs.stats.intervals import entity_interval, ratio_interval
from model_diffs.unlearning.data import plan_epoch
from model_diffs.unlearning.network import Network

TEXTS = ["a mill", "weavers sow", "the long ledger", "bread", "slow salt water", "Ava", "reeds"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save("gpt_neox", tmp_path_factory.mktemp("attacked") / "model"))


def question(number: int, entity: str) -> Question:
    choices = ("oak", "elm", "ash", "fir")
    prompt = f"Tree {number} of {entity}?"
    return Question(f"q{number}", "hazard", entity, "tree", None, prompt, choices, number % 4)


def material(asked: bool = True) -> Material:
    groups = {
        "attack": [question(n, f"e{n // 2}") for n in range(6)],
        "heldout": [question(n, f"e{n % 3}") for n in range(6, 11)],
    }
    return Material(
        {"facts": TEXTS, "retain": TEXTS[::-1], "lora": TEXTS},
        ["forget one", "forget line two"],
        ["retain", "retain two", "and a third one"],
        groups if asked else {},
    )


def options(**changed: Any) -> Attack:
    given = {"device": "cpu", "batch_size": 3, "steps": 4, "eval_steps": "0,2", "lr": (1e-3,)}
    given |= {"questions": "asked", "forget_text": "f", "retain_text": "r", "seed": 11}
    return Attack(**{**given, **changed})


def token_nlls(network: Network, ids: list[int]) -> torch.Tensor:
    logits = network.model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]


def test_an_attack_equals_a_plain_loop_of_adamw(model: str) -> None:
    """A constant rate, no weight decay, gradients clipped to 1, epochs in the seeded order."""
    victim, plain = (relearning._Victim(model, material(), options()) for _ in range(2))
    for one in (victim, plain):
        one.network.double()
    start = victim.measure(0)
    found = victim.attack("facts", 2e-3, start)
    ids = plain.texts["arm facts"]
    lengths = [len(one) for one in ids]
    assert lengths == [len(text) for text in TEXTS], "a token per byte"
    weights = list(plain.network.parameters())
    optimizer = torch.optim.AdamW(weights, 2e-3, weight_decay=0.0)
    tokens, steps = 0, (s for e in itertools.count() for s in plan_epoch(lengths, [], 3, 11, e))
    losses, norms = [], []
    for step in itertools.islice(steps, 4):
        loss = torch.cat([token_nlls(plain.network, ids[i]) for i in step.forget]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in weights]))
        losses.append(float(loss))
        norms.append(float(norm))
        for weight in weights:
            weight.grad *= min(1.0, 1.0 / (float(norm) + 1e-6))
        optimizer.step()
        tokens += sum(lengths[i] for i in step.forget)
    assert max(norms) > 1, "or the limit is not tried"
    assert [one.step for one in found.training] == [1, 2, 3, 4]
    np.testing.assert_allclose([one.loss for one in found.training], losses, rtol=1e-6)
    np.testing.assert_allclose([one.grad_norm for one in found.training], norms, rtol=1e-6)
    for one, other in zip(victim.network.parameters(), weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert sorted(found.measured) == [0, 2, 4] and found.measured[0] is start
    assert found.end.tokens == tokens and found.steps == 4
    assert (found.arm, found.lr) == ("facts", 2e-3)


def test_numbers_of_a_model_are_those_of_its_texts_and_entities(model: str) -> None:
    victim = relearning._Victim(model, material(), options())
    found = victim.measure(17)
    assert found.tokens == 17
    for split, texts in (("forget", material().forget), ("retain", material().retain)):
        ids = victim.texts[split]
        assert len(ids) == len(texts)
        with torch.no_grad():
            sums = [float(token_nlls(victim.network, one).sum()) for one in ids]
        expected = ratio_interval(sums, [len(one) - 1 for one in ids], 11)
        np.testing.assert_allclose(found.nll[split], expected, rtol=1e-5)
    for group, questions in material().questions.items():
        assert len(found.correct[group]) == len(questions)
        entities = [one.entity for one in questions]
        expected = entity_interval(found.correct[group], entities, 11)
        np.testing.assert_allclose(found.accuracy[group], expected)
    assert victim.measure(0).accuracy.keys() == {"attack", "heldout"}
    assert relearning._Victim(model, material(False), options()).measure(0).accuracy == {}


def answering(accuracies: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let measurements, one after the other, find these shares of attacked facts right."""
    left = iter(accuracies)
    whole = relearning._Victim.measure

    def measure(self: Any, tokens: int) -> relearning.Measured:
        share = next(left)
        found = whole(self, tokens)
        interval = entity_interval([0, 1], ["a", "b"], 0)._replace(mean=np.float64(share))
        return found._replace(accuracy={**found.accuracy, "attack": interval})

    monkeypatch.setattr(relearning._Victim, "measure", measure)


@pytest.mark.parametrize(
    ("arm", "reached", "took", "steps"),
    [
        ("facts", [0.0, 0.5, 0.95, 1.0], True, 3),
        ("facts", [0.0, 0.5, 0.9, 0.9, 0.94], False, 6),
        ("facts", [1.0, 0.0, 0.0, 0.0, 0.95], True, 6),
        ("retain", [0.0, 1.0, 1.0, 1.0, 1.0], None, 6),
    ],
)
def test_an_attack_stops_once_it_took(
    arm: str, reached: list[float], took: bool | None, steps: int, model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    answering(reached, monkeypatch)
    given = options(arm=(arm,), steps=6, eval_steps="0,1,3,5,9", until=0.95)
    (found,) = relearning.attack(model, material(), given)
    assert (found.took, found.steps) == (took, steps)
    assert sorted(found.measured) == [s for s in (0, 1, 3, 5, 6) if s <= steps]


def test_every_arm_and_rate_begins_with_the_model_itself(model: str) -> None:
    given = options(arm=("facts", "retain"), lr=(1e-3, 3e-3), steps=2, eval_steps="0")
    found = relearning.attack(model, material(False), given)
    assert [(one.arm, one.lr) for one in found] == [
        ("facts", 1e-3), ("facts", 3e-3), ("retain", 1e-3), ("retain", 3e-3),
    ]  # fmt: skip
    for one in found:
        (alone,) = relearning.attack(
            model, material(False), options(arm=(one.arm,), lr=(one.lr,), steps=2, eval_steps="0")
        )
        assert alone.end.nll == one.end.nll and alone.took is one.took is None
        before = relearning.measure(model, material(False), given)
        assert one.measured[0].nll == before.nll != one.end.nll and before.tokens == 0
        assert one.measured[0].tokens == 0 < one.end.tokens


def test_an_adapter_trains_alone_and_is_taken_off(model: str) -> None:
    pytest.importorskip("peft")
    victim = relearning._Victim(model, material(), options(lora_rank=3, lr=(1e-1,)))

    def weights() -> dict[str, torch.Tensor]:
        return {n: t.clone() for n, t in victim.network.model.state_dict().items()}

    start, before = victim.measure(0), weights()
    found = victim.attack("lora", 1e-1, start)
    assert found.end.nll["forget"].mean != start.nll["forget"].mean
    after = weights()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_all_weights_are_trained_again_after_an_adapter(model: str) -> None:
    pytest.importorskip("peft")
    _, after = relearning.attack(
        model, material(False), options(arm=("lora", "facts"), steps=1, eval_steps="0")
    )
    (alone,) = relearning.attack(
        model, material(False), options(arm=("facts",), steps=1, eval_steps="0")
    )
    assert after.end.nll == alone.end.nll != after.measured[0].nll


@pytest.mark.parametrize(("asked", "rank"), [(3, 3), (None, LORA_RANK)])
def test_the_adapter_has_the_rank_that_was_asked_for(
    asked: int | None, rank: int, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    ranks: list[tuple[int, int]] = []
    attach = relearning.attach_adapter

    def look(network: Any, own: int, seed: int) -> Any:
        ranks.append((own, seed))
        return attach(network, own, seed)

    monkeypatch.setattr(relearning, "attach_adapter", look)
    relearning.attack(model, material(False), options(arm=("lora",), lora_rank=asked, steps=1))
    assert ranks == [(rank, 11)]


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_on_a_cpu_weights_are_trained_in_the_dtype_they_have(
    dtype: str, weights: torch.dtype, model: str
) -> None:
    victim = relearning._Victim(model, material(False), options(dtype=dtype))
    assert next(victim.network.parameters()).dtype == weights
    assert isinstance(victim.autocast, nullcontext) and not victim.network.model.training


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    ("dtype", "weights", "mixed"),
    [
        ("auto", torch.float32, True),
        ("fp32", torch.float32, False),
        ("bf16", torch.bfloat16, False),
    ],
)
def test_on_a_gpu_fp32_weights_are_trained_in_bfloat16_passes(
    dtype: str, weights: torch.dtype, mixed: bool, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is told to be a GPU; the model is loaded onto the CPU."""
    load, trusted = relearning.load_model, []

    def load_here(
        name: str, device: torch.device, own: torch.dtype, trust: bool, held: bool
    ) -> Any:
        assert not held  # all weights are trained
        trusted.append((device.type, own, trust))
        return load(name, torch.device("cpu"), own, trust)

    def tokenizer(name: str, trust: bool) -> Any:
        trusted.append(trust)
        return load_tokenizer(name)

    monkeypatch.setattr(relearning, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(relearning, "load_model", load_here)
    monkeypatch.setattr(relearning, "load_tokenizer", tokenizer)
    given = options(dtype=dtype, trust_remote_code=True)
    victim = relearning._Victim(model, material(False), given)
    assert trusted == [("cuda", weights, True), True]
    assert isinstance(victim.autocast, torch.autocast) == mixed
    assert not mixed or victim.autocast.fast_dtype == torch.bfloat16


def test_small_models_train_on_one_thread(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relearning, "ONE_THREAD", 10**9)
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with relearning.fitting_threads(model, "cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(relearning, "ONE_THREAD", 0)
        with relearning.fitting_threads(model, "cpu"):
            assert torch.get_num_threads() == 2
        monkeypatch.setattr(relearning, "ONE_THREAD", Checkpoint.open(model).weights)
        with relearning.fitting_threads(model, "cpu"):
            assert torch.get_num_threads() == 2, "as many are not below it"
    finally:
        torch.set_num_threads(own)


def test_texts_of_one_token_predict_nothing(model: str, tmp_path: Path) -> None:
    from model_diffs.core.errors import BadInput

    given = material(False)
    some = given._replace(forget=["x", "two"], arms={"facts": ["a", "bc", "d"]})
    victim = relearning._Victim(model, some, options(max_length=2))
    assert [len(one) for one in victim.texts["forget"]] == [2]
    assert len(victim.texts["arm facts"]) == 1
    with pytest.raises(BadInput, match="the retain texts are single tokens"):
        relearning._Victim(model, some._replace(retain=["x"]), options())
