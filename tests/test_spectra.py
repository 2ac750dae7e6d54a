"""Singular values against LAPACK in fp64, and on planted spectra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

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
        assert abs(found.value / scale - reference) <= found.error * reference <= 1e-3 * reference


def test_largest_singular_value_of_a_change_much_smaller_than_its_matrix():
    """The change is 1e-4 of W's size: σ₁ of what fp32 subtraction gives is that of the change."""
    W, change = flat((512, 700)), planted(FALLING[:300] ** -0.3, (512, 700), 1) * 1e-4
    dW = (W + change).float() - W.float()
    reference = float(torch.linalg.matrix_norm(dW.double(), 2))
    assert largest(dW).value == pytest.approx(reference, rel=1e-3)


STAIRS = torch.arange(384, dtype=torch.float64)
HARD = {
    **{
        f"flat, one {lead}": torch.cat([torch.tensor([lead]), torch.ones(383)])
        for lead in (1.001, 1.003, 1.01, 1.02, 1.03, 1.1)
    },
    "half of it zero": (STAIRS < 192).double() + 0.01 * (STAIRS == 0),
    "gap of 1e-3": 1 - STAIRS / 800 + 1e-3 * (STAIRS == 0),
    "cluster of 16": 0.5 + 0.5 * (STAIRS < 16) + 0.005 * (STAIRS == 0),
    "64 within 1e-3": torch.where(STAIRS < 64, 1 - 1e-3 * STAIRS / 64, 0.9),
    "stairs": 0.99 ** (STAIRS // 6),
}


@pytest.mark.parametrize("kind", HARD)
def test_bound_is_true_where_a_largest_value_is_easily_missed(kind):
    sigma = HARD[kind].double()
    W, true = planted(sigma, (384, 400)).float(), float(sigma.max())
    for seed in range(4):
        found = largest(W, seed=seed)
        assert abs(true - found.value) <= found.error * found.value
        assert found.error <= 1e-3


@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 8])
def test_bound_is_true_where_iterations_run_out(iterations):
    sigma = 1 - STAIRS / 800
    W = planted(sigma, (384, 400)).float()
    with pytest.warns(RuntimeWarning, match="--max-iters"):
        found = largest(W, max_iterations=iterations)
    assert found.error > 1e-3
    assert 0 <= 1 - found.value <= found.error * found.value


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
    top = torch.linalg.eigvalsh(V.T @ W.T @ W @ V)[-1]
    with pytest.warns(RuntimeWarning):
        found = largest(W.float(), max_iterations=1, seed=11)
    assert found.value == pytest.approx(float(top.sqrt()), rel=1e-5)
    assert found.iterations == 1


def test_half_precision_reaches_the_tolerance_of_the_matrix_as_it_is_stored(recwarn):
    W = planted(FALLING[:300] ** -1.0, (500, 300)).bfloat16()
    found = largest(W)
    reference = float(torch.linalg.matrix_norm(W.double(), 2))
    assert abs(found.value / reference - 1) <= 1e-5, "products are not rounded to bfloat16"
    assert found.error <= 1e-3
    assert not recwarn


def test_a_falling_spectrum_takes_few_iterations():
    found = largest(SPECTRA["decaying"]().float())
    assert found.iterations <= 7


def test_error_is_smaller_than_the_tolerance_where_more_is_known(recwarn):
    single = torch.zeros(300, 300)
    single[0, 0] = 3.0
    for W in (single, torch.eye(300) * 3):
        found = largest(W)
        assert found.value == pytest.approx(3, rel=1e-5)
        assert found.error < 3e-4
        assert found.iterations <= 3
    assert not recwarn


def test_a_tolerance_beyond_fp32_takes_the_gram_matrix():
    W = flat((300, 320))
    found = spectra.top_singular_value(W.float(), 1e-6, 200, 0, "W")
    assert found.value == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-7)
    assert (found.error, found.iterations) == (0.0, 0)


def test_a_bound_that_equals_the_tolerance_is_enough(monkeypatch, recwarn):
    reached = spectra.TopSingularValue(1.0, 1e-3, 5)
    monkeypatch.setattr(spectra, "_block_lanczos", lambda *_: reached)
    assert largest(torch.eye(300)) == reached
    assert not recwarn


def test_a_square_matrix_stays_as_it_is():
    W = flat((6, 6))
    torch.testing.assert_close(spectra.gram(W), W.T @ W)


# ── the bound, from Ritz pairs in fp64 ────────────────────────────────────────────────────────────


def ritz_pairs(spectrum, start, steps):
    """Ritz pairs of a diagonal matrix in the block Krylov space of `start` [n, BLOCK]."""
    V = torch.linalg.qr(start)[0]
    for _ in range(steps - 1):
        block = spectrum[:, None] * V[:, -spectra.BLOCK :]
        for _ in range(2):
            block = torch.linalg.qr(block - V @ (V.T @ block))[0]
        V = torch.cat([V, block], 1)
    product = spectrum[:, None] * V
    T = V.T @ product
    outside = torch.linalg.qr((product - V @ T)[:, -spectra.BLOCK :])[1]
    return spectra._ritz_pairs(T, outside, V[:, : spectra.BLOCK].T @ start)


@pytest.mark.parametrize("lead", [1.002, 1.02, 1.3])
def test_a_value_that_is_there_is_never_excluded(lead):
    """The block has as little of the largest direction as the bound allows."""
    generator = torch.Generator().manual_seed(3)
    for rest in (torch.ones(200), torch.rand(200, generator=generator), torch.linspace(1, 0, 200)):
        spectrum = torch.cat([torch.tensor([lead]), rest / rest.max()]).double()
        start = torch.randn(201, spectra.BLOCK, generator=generator, dtype=torch.float64)
        start[0] *= 1.0001 * spectra.SMALLEST / start[0].norm()
        for steps in range(1, 12):
            ritz = ritz_pairs(spectrum, start, steps)
            missed = (lead / float(ritz.values[-1])) ** 0.5 - 1
            for share in (0.999, 0.9, 0.5, 0.1):
                assert not spectra._excludes(ritz, missed * share)


def test_what_is_not_there_is_excluded_after_a_few_steps():
    spectrum = torch.linspace(1, 0, 400, dtype=torch.float64)
    start = torch.randn(400, spectra.BLOCK, dtype=torch.float64, generator=torch.manual_seed(0))
    reached = [
        min(e for e in (1e-3, 1e-2, 1e-1, 1, 10, 100) if spectra._excludes(ritz, e))
        for ritz in (ritz_pairs(spectrum, start, steps) for steps in (2, 8, 32))
    ]
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] == 1e-3 < reached[0]


def test_the_smallest_norm_of_a_gaussian_block_has_the_stated_probability():
    probability = chi2.cdf(spectra.SMALLEST**2, spectra.BLOCK)
    assert 0.9 * spectra.FAILURE < probability <= spectra.FAILURE


def test_small_polynomial_is_the_smallest_of_its_degree():
    draw = np.random.default_rng(0)
    nodes, weights = np.sort(draw.random(12)), draw.random(12)
    powers, at = nodes[:, None] ** np.arange(5), 1.1 ** np.arange(5)
    moments = np.linalg.inv(powers.T @ (weights[:, None] * powers))
    p = spectra._small_polynomial(nodes, weights, 1.1, 5)
    np.testing.assert_allclose(p, powers @ moments @ at / (at @ moments @ at), rtol=1e-6)
