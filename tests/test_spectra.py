"""Singular values against LAPACK in fp64, and on planted spectra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_diffs.models import checkpoints
from model_diffs.stats import spectra


def planted(sigma, shape, seed=0):
    """A matrix in fp64 with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    left = torch.linalg.qr(torch.randn(m, len(sigma), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n, len(sigma), generator=generator, dtype=torch.float64))[0]
    return (left * sigma) @ right.T


def flat(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def largest(W, max_iterations=200, seed=42, name="W"):
    return spectra.top_singular_value(W, 1e-3, max_iterations, seed, name)


LARGE = (640, 2048)
FALLING = torch.arange(1, 641, dtype=torch.float64)
SPECTRA = {
    "flat": lambda: flat(LARGE),
    "decaying": lambda: planted(FALLING**-0.3, LARGE),
    "low rank and noise": lambda: (
        planted(torch.linspace(90, 80, 8, dtype=torch.float64), LARGE) + 0.5 * flat(LARGE, 1)
    ),
}


@pytest.mark.parametrize("kind", SPECTRA)
def test_largest_singular_value_is_within_tolerance_of_lapack(kind):
    W = SPECTRA[kind]()
    reference = float(torch.linalg.eigvalsh(W @ W.T)[-1].sqrt())
    for matrix, scale in ((W, 1.0), (W.T, 1.0), (W, 1e-12)):
        found = largest((matrix * scale).float())
        assert abs(found.value / scale - reference) <= 1e-3 * reference
        assert found.iterations > 0
        assert found.error < 1e-3


def test_largest_singular_value_of_a_change_much_smaller_than_its_matrix():
    """The change is 1e-4 of W's size: σ₁ of what fp32 subtraction gives is that of the change."""
    W, change = flat((512, 700)), planted(FALLING[:300] ** -0.3, (512, 700), 1) * 1e-4
    dW = (W + change).float() - W.float()
    reference = float(torch.linalg.matrix_norm(dW.double(), 2))
    assert largest(dW).value == pytest.approx(reference, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lead", [1.0, 1.003, 1.02])
def test_error_bound_holds_where_the_gap_is_small(seed, lead):
    sigma = 1 - torch.arange(400, dtype=torch.float64) / 800
    sigma[0] *= lead
    found = largest(torch.diag(sigma).float(), seed=seed)
    assert abs(found.value - lead) / lead <= found.error + 1e-6


def test_too_few_iterations_warn_and_return_the_error_reached():
    W = flat((600, 700)).float()
    with pytest.warns(RuntimeWarning, match=r"the_matrix.*--max-iters"):
        found = largest(W, max_iterations=2, name="the_matrix")
    true = float(torch.linalg.matrix_norm(W.double(), 2))
    assert found.error > 1e-3
    assert found.value < true


def test_same_seed_gives_the_same_value():
    W = flat((400, 500)).float()
    assert largest(W, seed=7) == largest(W, seed=7)


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (40, 50), (1, 9)])
def test_stable_rank_of_a_rank_one_matrix_is_one(shape):
    W = torch.outer(torch.randn(shape[0]), torch.randn(shape[1]))
    top = largest(W).value
    rank = spectra.stable_rank(float(W.double().norm()), top)
    assert 1 <= rank < 1.0005


def test_zero_matrix_has_no_stable_rank():
    found = largest(torch.zeros(400, 300))
    assert found == (0.0, 0.0, 0)
    assert spectra.stable_rank(0.0, 0.0) is None
    assert spectra.rank_for_share(spectra.singular_values(torch.zeros(4, 3)), 0.99) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_all_singular_values_equal_lapack(m, n, seed):
    W = flat((m, n), seed)
    expected = torch.linalg.svdvals(W)
    torch.testing.assert_close(spectra.singular_values(W), expected, rtol=1e-7, atol=1e-7)
    top = largest(W.float()).value
    assert spectra.stable_rank(float(W.norm()), top) >= 1


def test_gram_in_chunks_equals_the_product(monkeypatch):
    monkeypatch.setattr(checkpoints, "_CHUNK", 64)
    W = flat((50, 20))
    torch.testing.assert_close(spectra.gram(W), W.T @ W)
    torch.testing.assert_close(spectra.gram(W.T), W.T @ W)


def test_rank_for_share_by_hand():
    sigma = torch.tensor([3.0, 2.0, 1.0])  # energies 9, 4, 1 of 14
    assert spectra.rank_for_share(sigma, 9 / 14 - 1e-9) == 1
    assert spectra.rank_for_share(sigma, 0.9) == 2
    assert spectra.rank_for_share(sigma, 0.99) == 3
    assert spectra.rank_for_share(sigma, 1.0) == 3
    assert spectra.rank_for_share(torch.tensor([2.0, 2.0]), 0.5) == 1, "reached exactly"
    assert spectra.rank_for_share(torch.tensor([2.0]), 0.99) == 1


def test_stable_rank_by_hand():
    assert spectra.stable_rank(6.0, 3.0) == 4
    assert spectra.stable_rank(1.0, 1.0) == 1
    assert spectra.stable_rank(1.0, 1.0 + 1e-6) == 1, "rounding below 1"
    assert spectra.stable_rank(2.0, 1.0) == 4
    assert spectra.stable_rank(2.0, 0.0) is None
    assert spectra.stable_rank(0.0, 2.0) is None


# ── when it stops, and the bound ──────────────────────────────────────────────────────────────────


def test_small_sides_are_exact_and_larger_ones_iterate():
    exact, iterated = largest(flat((256, 300)).float()), largest(flat((257, 300)).float())
    assert (exact.error, exact.iterations) == (0.0, 0)
    assert iterated.error > 0 and iterated.iterations > 1


def test_the_first_iteration_is_rayleigh_ritz_on_the_seeded_block():
    W = flat((500, 300))
    block = torch.randn(300, spectra.BLOCK, generator=torch.Generator().manual_seed(11))
    V = torch.linalg.qr(block.double())[0]
    values, vectors = torch.linalg.eigh(V.T @ W.T @ W @ V)
    x = V @ vectors[:, -1]
    residual = (W.T @ (W @ x) - values[-1] * x).norm()
    with pytest.warns(RuntimeWarning):
        found = largest(W.float(), max_iterations=1, seed=11)
    assert found.value == pytest.approx(float(values[-1].sqrt()), rel=1e-5)
    assert found.error == pytest.approx(float(residual / (2 * values[-1])), rel=1e-4)
    assert found.iterations == 1


def test_the_bound_of_half_precision_includes_its_rounding():
    W = planted(FALLING[:300] ** -1.0, (500, 300))
    rounding = 2**-8  # half the distance of 1 and the next bfloat16
    with pytest.warns(RuntimeWarning, match="known to"):  # rounding alone is above the tolerance
        found = largest(W.bfloat16())
    assert rounding <= found.error <= rounding + 1e-3
    assert found.iterations < 300 // spectra.BLOCK, "its rounding is no reason to go on"
    reference = float(torch.linalg.matrix_norm(W.bfloat16().double(), 2))
    assert abs(found.value / reference - 1) <= found.error
    single = torch.zeros(300, 300)
    single[0, 0] = 1.0
    assert largest(single, seed=3).error < 2**-24, "fp32 adds nothing"


def test_a_bound_that_equals_the_tolerance_is_enough(monkeypatch, recwarn):
    reached = spectra.TopSingularValue(1.0, 1e-3, 5)
    monkeypatch.setattr(spectra, "_block_lanczos", lambda *_: reached)
    assert largest(torch.eye(300)) == reached
    assert not recwarn


def test_a_square_matrix_stays_as_it_is():
    W = flat((6, 6))
    torch.testing.assert_close(spectra.gram(W), W.T @ W)
