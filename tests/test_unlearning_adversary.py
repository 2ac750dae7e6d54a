"""The latent adversary and the orthogonal target, text by text in fp64."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
import torch.nn.functional as F

from model_diffs.unlearning.adversarial import attack
from model_diffs.unlearning.data import Pair, SplitBatch, split_batch
from model_diffs.unlearning.losses import get_loss, random_direction
from model_diffs.unlearning.network import Network, Perturbation
from model_diffs.unlearning.reference import CachedReference, state_splits
from model_diffs.unlearning.representation import TILT
from model_diffs.unlearning.settings import Settings

TEXTS = [[5, 9, 30, 41, 7], [8, 12, 60], [17, 23, 4, 4, 90, 91]]
CPU = torch.device("cpu")
SETTINGS = Settings(
    layers=(0, 1), lat_layers=(1,), lat_eps=0.05, lat_steps=4, lat_step_size=0.02, alpha=3.0
)


def make_network(seed: int) -> Network:
    return Network(tiny_models.build("gpt_neox", seed).double())


def batch_of(texts: list[list[int]]) -> SplitBatch:
    return split_batch(texts, range(len(texts)), 0, CPU)


def searched(network: Network, ids: list[int], settings: Settings) -> torch.Tensor:
    """The best δ `[blocks, positions, hidden]` for one text, as the docstring of `attack` says."""
    one, blocks = batch_of([ids]), len(settings.lat_layers)
    delta = torch.zeros(blocks, 1, len(ids), tiny_models.HIDDEN, dtype=torch.float64)
    best, highest = delta, -torch.inf
    for step in range(settings.lat_steps + 1):
        delta = delta.detach().requires_grad_()
        found = network.log_probs(one, Perturbation(settings.lat_layers, delta))
        if float(found) > highest:
            best, highest = delta.detach(), float(found)
        if step < settings.lat_steps:
            (gradient,) = torch.autograd.grad(-found.sum(), delta)
            moved = delta - settings.lat_step_size * gradient.sign()
            delta = moved.clamp(-settings.lat_eps, settings.lat_eps)
    return best[:, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lat_steps": 0},
        {"lat_steps": 1},
        {"lat_layers": (0,), "lat_step_size": 0.03},
        {"lat_layers": (0, 1, 2)},
        {"lat_layers": (0, 1), "lat_step_size": 0.05},  # a step of the whole bound
        {"lat_step_size": 2.0, "lat_eps": 3.0},  # too long a step: an earlier iterate is best
    ],
)
def test_the_adversary_equals_a_search_text_by_text(changes: dict[str, float]) -> None:
    settings = replace(SETTINGS, **changes)
    network = make_network(1)
    found = attack(network, batch_of(TEXTS), settings)
    assert found.layers == settings.lat_layers and not found.delta.requires_grad
    for row, ids in zip(found.delta.unbind(1), TEXTS, strict=True):
        torch.testing.assert_close(row[:, : len(ids)], searched(network, ids, settings))
        assert not row[:, len(ids) :].any()


def test_the_adversary_of_a_model_in_half_precision_searches_in_fp32() -> None:
    network = Network(tiny_models.build("gpt_neox", 1).bfloat16())
    found = attack(network, batch_of(TEXTS), SETTINGS)
    assert found.delta.dtype == torch.float32 and found.delta.any()


def make_reference(network: Network, pair: Pair, settings: Settings) -> CachedReference:
    reference = CachedReference(torch.float64, settings.layers, Path())
    for split in state_splits(get_loss("cb"), settings):
        batch = getattr(pair, split)
        lengths = batch.attention_mask.sum(1).tolist()
        reference.reserve(split, dict(enumerate(lengths)), tiny_models.HIDDEN)
        reference.fill(network, split, batch, "states")
    return reference


def test_states_at_the_base_turn_towards_the_direction_of_their_block() -> None:
    """A token of the base is compared with the base's direction, tilted by TILT towards u."""
    settings = replace(SETTINGS, cb_target="orthogonal")
    base, pair = make_network(0), Pair(batch_of(TEXTS[:2]), batch_of(TEXTS[1:]))
    terms = get_loss("cb").compute(base, pair, make_reference(base, pair, settings), settings)
    expected = torch.zeros((), dtype=torch.float64)
    states = base.states(pair.forget, settings.layers)
    for layer, hidden in states.items():
        u = random_direction(tiny_models.HIDDEN, layer, settings.seed, "cb").double()
        h = hidden[pair.forget.attention_mask.bool()]
        tilted = h + TILT * h.norm(dim=1, keepdim=True) * u
        expected = expected + torch.relu(F.cosine_similarity(h, tilted.detach())).mean()
    assert float(terms.forget) == pytest.approx(float(expected), abs=1e-13)
    assert float(terms.forget) < len(settings.layers) - 1e-8, "a cosine below one"
    assert float(terms.forget) > len(settings.layers) * (1 - 1e-6), "and not by more than a tilt"
    assert float(terms.retain) == pytest.approx(0.0, abs=1e-12)
    weight = base.blocks[0].attention.dense.weight
    found, wanted = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (terms.forget, expected)
    )
    # The target stays where the base is: only the state moves.
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)
    assert found.norm() > 1e-5


def test_states_off_the_base_are_compared_with_the_base_itself() -> None:
    settings = replace(SETTINGS, cb_target="orthogonal")
    base, changed = make_network(0), make_network(1)
    pair = Pair(batch_of(TEXTS[:2]), batch_of(TEXTS[1:]))
    reference = make_reference(base, pair, settings)
    with torch.no_grad():
        terms = get_loss("cb").compute(changed, pair, reference, settings)
        parts = []
        for layer in settings.layers:
            of = [
                [network.states(batch, [layer])[layer][batch.attention_mask.bool()]
                 for network in (changed, base)]
                for batch in (pair.forget, pair.retain)
            ]  # fmt: skip
            parts.append([F.cosine_similarity(*one) for one in of])
    forget = sum(float(one.clamp_min(0).mean()) for one, _ in parts)
    retain = sum(float((1 - one).mean()) for _, one in parts)
    assert float(terms.forget) == pytest.approx(forget, abs=1e-12)
    assert float(terms.retain) == pytest.approx(settings.alpha * retain, abs=1e-12)


def test_weights_that_are_shared_out_are_gathered_after_each_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, gathered = make_network(0), []
    monkeypatch.setattr(Network, "gather_again", lambda self: gathered.append(self))
    attack(network, batch_of(TEXTS), SETTINGS)
    assert gathered == [network] * SETTINGS.lat_steps
