"""Each unlearning loss against one worked out text by text, without padding, in fp64."""

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from losses_by_hand import (
    CPU,
    FORGET,
    RETAIN,
    SETTINGS,
    TEXT,
    by_hand,
    make_network,
    make_pair,
    make_reference,
    mean_nll,
    states,
    token_log_probs,
)

from model_diffs.core.methods import METHODS, TRAINED
from model_diffs.models.loading import hooks
from model_diffs.unlearning.adversarial import attack
from model_diffs.unlearning.data import Pair, split_batch
from model_diffs.unlearning.losses import LOSSES, Terms, get_loss
from model_diffs.unlearning.network import Network, Perturbation, check_head
from model_diffs.unlearning.reference import state_splits
from model_diffs.unlearning.settings import Settings


@pytest.fixture
def base() -> Network:
    return make_network(seed=0)


@pytest.fixture
def changed() -> Network:
    """Other weights than the base's, so that no difference between them is zero."""
    return make_network(seed=1)


VARIANTS = [
    *((name, {}) for name in TRAINED if not get_loss(name).adversary),
    ("npo", {"logprob_reduction": "sum", "beta": 0.05}),
    ("dpo", {"logprob_reduction": "sum", "beta": 0.05}),
    ("cb", {"cb_target": "orthogonal"}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_loss_equals_a_computation_text_by_text(
    name: str, changes: dict[str, Any], base: Network, changed: Network
) -> None:
    settings = replace(SETTINGS, **changes)
    pair = make_pair()
    reference = make_reference(base, pair)
    with torch.no_grad():
        loss = get_loss(name).compute(changed, pair, reference, settings).loss
        expected = by_hand(name, changed, base, settings)
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_gradient_equals_a_finite_difference(name: str, base: Network, changed: Network) -> None:
    # With no inner step the adversary is δ = 0: its own choice of δ is not differentiated through.
    settings = replace(SETTINGS, lat_steps=0)
    pair = make_pair()
    reference = make_reference(base, pair)
    loss = get_loss(name).compute
    weights = [p for p in changed.parameters() if p.ndim == 2]
    gradients = torch.autograd.grad(
        loss(changed, pair, reference, settings).loss, weights, allow_unused=True
    )
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    slope = sum(
        float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    values = []
    step = 1e-5
    with torch.no_grad():
        for sign in (1, -1):
            for p, d in zip(weights, directions, strict=True):
                p.add_(d, alpha=sign * step)
            values.append(float(loss(changed, pair, reference, settings).loss))
            for p, d in zip(weights, directions, strict=True):
                p.sub_(d, alpha=sign * step)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", TRAINED)
def test_padding_and_order_change_nothing(name: str, base: Network, changed: Network) -> None:
    pair, padded = make_pair(), make_pair(extra=4)
    loss = get_loss(name).compute
    expected = float(loss(changed, pair, make_reference(base, pair), SETTINGS).loss.detach())
    found = float(loss(changed, padded, make_reference(base, padded), SETTINGS).loss.detach())
    assert found == pytest.approx(expected, abs=1e-9)
    turned = make_pair(FORGET[::-1], RETAIN[::-1], text=TEXT[::-1])
    found = float(loss(changed, turned, make_reference(base, turned), SETTINGS).loss.detach())
    assert found == pytest.approx(expected, abs=1e-9)


# Options of unlearn.py and the settings that they become; --layer-id also sets lat's block.
RESOLVED: dict[str, dict[str, Any]] = {
    "beta": {"beta": 0.9},
    "gamma": {"gamma": 0.5},
    "logprob_reduction": {"logprob_reduction": "sum"},
    "forget_weight": {"forget_weight": 2.0},
    "retain_weight": {"retain_weight": 2.0},
    "alpha": {"alpha": 5.0},
    "layer_id": {"layers": (1, 2), "lat_layers": (1,)},
    "steering_coeff": {"steering": (3.0, 6.0)},
    "cb_target": {"cb_target": "orthogonal"},
    "lat_layer": {"lat_layers": (1,)},
    "lat_eps": {"lat_eps": 0.01},
    "lat_steps": {"lat_steps": 1},
    "lat_step_size": {"lat_step_size": 0.01},
}


@pytest.mark.parametrize("name", TRAINED)
def test_registry_names_the_options_that_act_on_each_loss(
    name: str, base: Network, changed: Network
) -> None:
    pair = make_pair()
    reference = make_reference(base, pair)
    compute = get_loss(name).compute
    before = float(compute(changed, pair, reference, SETTINGS).loss.detach())
    acting = set()
    for option, changes in RESOLVED.items():
        after = compute(changed, pair, reference, replace(SETTINGS, **changes)).loss
        if float(after.detach()) != before:
            acting.add(option)
    assert acting == set(METHODS[name].options)


def test_every_trained_method_of_the_registry_has_a_loss() -> None:
    assert [get_loss(name).name for name in TRAINED] == TRAINED
    assert set(LOSSES) == set(TRAINED)


WEIGHTS = [
    ("ga", "retain_weight", "retain"),
    ("npo", "retain_weight", "retain"),
    ("simnpo", "retain_weight", "retain"),
    ("lat", "retain_weight", "retain"),
    ("grad_diff", "forget_weight", "forget"),
    ("rmu", "alpha", "retain"),
    ("cb", "alpha", "retain"),
    ("cb_lat", "alpha", "retain"),
]


@pytest.mark.parametrize(("name", "weight", "term"), WEIGHTS)
def test_a_weight_scales_its_term_alone(
    name: str, weight: str, term: str, base: Network, changed: Network
) -> None:
    pair = make_pair()
    reference = make_reference(base, pair)
    loss = get_loss(name).compute
    doubled = replace(SETTINGS, **{weight: 2 * getattr(SETTINGS, weight)})
    once, twice = (loss(changed, pair, reference, one) for one in (SETTINGS, doubled))
    once, twice = (Terms(one.forget.detach(), one.retain.detach()) for one in (once, twice))
    other = "forget" if term == "retain" else "retain"
    assert float(getattr(twice, term)) == pytest.approx(2 * float(getattr(once, term)))
    assert float(getattr(twice, other)) == pytest.approx(float(getattr(once, other)))
    for terms in (once, twice):
        assert float(terms.loss) == pytest.approx(float(terms.forget + terms.retain))


def gradient(name: str, network: Network, base: Network, pair: Pair, settings: Settings) -> Any:
    terms = get_loss(name).compute(network, pair, make_reference(base, pair), settings)
    found = torch.autograd.grad(terms.loss, list(network.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_ga_is_grad_diff_where_weights_are_one(base: Network, changed: Network) -> None:
    settings = replace(SETTINGS, retain_weight=1.0, forget_weight=1.0)
    pair = make_pair()
    reference = make_reference(base, pair)
    ga, grad_diff = (
        float(get_loss(name).compute(changed, pair, reference, settings).loss.detach())
        for name in ("ga", "grad_diff")
    )
    assert ga == pytest.approx(grad_diff, abs=1e-12)


def test_npo_tends_to_ga_as_beta_vanishes(base: Network, changed: Network) -> None:
    pair = make_pair([[5, 9, 30, 41], [8, 12, 60, 2]])  # equal lengths: text and token means agree
    ga = gradient("ga", changed, base, pair, SETTINGS)
    errors = []
    for beta in (1e-1, 1e-2, 1e-3):
        npo = gradient("npo", changed, base, pair, replace(SETTINGS, beta=beta))
        errors.append(float((npo - ga).norm() / ga.norm()))
    assert errors[2] < 1e-3
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_npo_starts_at_two_over_beta_log_two(base: Network, reduction: str) -> None:
    pair = make_pair()
    settings = replace(SETTINGS, logprob_reduction=reduction)
    terms = get_loss("npo").compute(base, pair, make_reference(base, pair), settings)
    assert float(terms.forget.detach()) == pytest.approx(2 / settings.beta * math.log(2))
    retain = settings.retain_weight * float(mean_nll(base, RETAIN).detach())
    assert float(terms.retain.detach()) == pytest.approx(retain)


def test_rmu_and_cb_start_with_no_retain_term(base: Network) -> None:
    pair = make_pair()
    for name in ("rmu", "cb", "cb_lat"):
        terms = get_loss(name).compute(base, pair, make_reference(base, pair), SETTINGS)
        assert float(terms.retain.detach()) == pytest.approx(0.0, abs=1e-12)


def test_orthogonal_target_has_a_gradient_at_the_start(base: Network) -> None:
    settings = replace(SETTINGS, cb_target="orthogonal", alpha=0.0)
    found = gradient("cb", base, base, make_pair(), settings)
    assert float(found.norm()) > 1e-5
    assert state_splits(get_loss("cb"), settings) == ("retain", "forget")


def test_shares_of_a_step_add_up(base: Network, changed: Network) -> None:
    """Two batches that know the totals of both give the loss of one batch."""
    pair = make_pair()
    reference = make_reference(base, pair)
    for name in TRAINED:
        loss = get_loss(name).compute
        whole = float(loss(changed, pair, reference, SETTINGS).loss)
        parts = 0.0
        for i in (0, 1):
            batches = [split_batch(t, [i], 0, CPU, [0, 1]) for t in (FORGET, RETAIN, TEXT)]
            parts += float(loss(changed, Pair(*batches), reference, SETTINGS).loss)
        assert parts == pytest.approx(whole, abs=1e-9), name


# ── passes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_network_reads_every_family(family: str) -> None:
    """States by block index and log-probabilities equal the model's own outputs."""
    network = make_network(family)
    if family == "mixtral":
        network.float()  # its experts have no fp64 kernel
    batch = make_pair().retain
    assert batch is not None
    blocks = network.blocks
    with torch.no_grad():
        found = network.states(batch, [0, 1])
        log_probs = network.log_probs(batch)
        check_head(network, batch)
        assert network.blocks is blocks
        for row, ids in enumerate(RETAIN):
            for layer in (0, 1):
                expected = states(network, ids, layer)
                error = (found[layer][row, : len(ids)] - expected).abs().max()
                assert float(error) < 1e-5  # some families compute their norms in fp32
            expected = token_log_probs(network, ids).sum()
            assert float(log_probs[row]) == pytest.approx(float(expected), rel=1e-5)


def test_states_run_no_block_above_the_deepest_and_no_head(base: Network) -> None:
    ran = []
    with hooks() as handles:
        for number, block in enumerate(base.blocks):
            handles.append(block.register_forward_hook(lambda *a, n=number: ran.append(n)))
        head = base.model.get_output_embeddings()
        handles.append(head.register_forward_hook(lambda *a: ran.append("head")))
        base.states(make_pair().forget, [1])
    assert ran == [0, 1]
    assert len(base.model.gpt_neox.layers) == tiny_models.LAYERS


def hook_count(network: Network) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_no_hook_is_left_after_an_exception(base: Network) -> None:
    batch = make_pair().forget
    broken = batch._replace(input_ids=batch.input_ids + 10_000)
    delta = torch.zeros(1)
    for call in (
        lambda: base.states(broken, [0]),
        lambda: base.log_probs(broken, Perturbation((1,), delta[None])),
        lambda: base.states(batch, [2], Perturbation((0,), torch.zeros(1, 7))),
        lambda: attack(base, broken, SETTINGS),
    ):
        with pytest.raises((IndexError, RuntimeError)):
            call()
    assert hook_count(base) == 0
    assert len(base.model.gpt_neox.layers) == tiny_models.LAYERS


# ── the adversary ─────────────────────────────────────────────────────────────────────────────────


def test_attack_helps_every_text_within_its_bounds(base: Network) -> None:
    batch = make_pair(extra=3).forget
    before = [p.detach().clone() for p in base.parameters()]
    found = attack(base, batch, SETTINGS)
    (delta,) = found.delta
    assert float(delta.abs().max()) <= SETTINGS.lat_eps
    assert not delta.requires_grad
    assert bool((delta[batch.attention_mask == 0] == 0).all())
    with torch.no_grad():
        plain, attacked = base.log_probs(batch), base.log_probs(batch, found)
    assert bool((attacked > plain).all())
    assert all(p.grad is None for p in base.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))


def test_attack_keeps_zero_where_no_step_helps(base: Network) -> None:
    """A step far beyond what is useful: the best iterate met is still no worse than δ = 0."""
    batch = make_pair().forget
    wild = replace(SETTINGS, lat_eps=1e4, lat_step_size=1e4, lat_steps=2)
    with torch.no_grad():
        plain = base.log_probs(batch)
        found = base.log_probs(batch, attack(base, batch, wild))
    assert bool((found >= plain - 1e-12).all())


def test_attack_does_not_change_accumulated_gradients(base: Network) -> None:
    for parameter in base.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    attack(base, make_pair().forget, SETTINGS)
    assert all(bool((p.grad == 0.5).all()) for p in base.parameters())


def test_lat_is_ga_under_the_perturbation(base: Network, changed: Network) -> None:
    pair = make_pair()
    terms = get_loss("lat").compute(changed, pair, make_reference(base, pair), SETTINGS)
    (delta,) = attack(changed, pair.forget, SETTINGS).delta
    with torch.no_grad():
        log_probs = [
            token_log_probs(changed, ids, delta[i : i + 1, : len(ids)])
            for i, ids in enumerate(FORGET)
        ]
    expected = float(torch.cat(log_probs).mean())
    assert float(terms.forget.detach()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["lat", "cb_lat", "rmu", "npo"])
def test_gradient_checkpointing_changes_no_gradient(
    name: str, base: Network, changed: Network
) -> None:
    pair = make_pair()
    expected = gradient(name, changed, base, pair, SETTINGS)
    with changed.checkpointed(True):
        found = gradient(name, changed, base, pair, SETTINGS)
    assert torch.allclose(found, expected, atol=1e-12)
    assert not any("forward" in vars(block) for block in changed.blocks)
