"""The norm of a Jacobian on functions whose singular values are known, and in two metrics."""

import numpy as np
import pytest
import torch

from model_diffs.diagnostics import jacobian
from model_diffs.diagnostics.jacobian import Function, JacobianNorm


def norm(
    f: Function,
    x: torch.Tensor,
    counted: torch.Tensor,
    seeds: list[int],
    tolerance: float,
    max_iterations: int,
) -> JacobianNorm:
    """σ₁ from a start that each text draws with its own seed, the same for all its tokens."""
    shape = f(x).shape
    draws = [torch.randn(shape[2], generator=torch.Generator().manual_seed(s)) for s in seeds]
    products, start = jacobian.products(f, x, counted), torch.stack(draws)[:, None].expand(shape)
    metrics = [torch.clone]
    return jacobian.jacobian_norms(products, start, metrics, tolerance, max_iterations)[0]


def mixing() -> tuple[Function, torch.Tensor, torch.Tensor, torch.Tensor]:
    """f mixes tokens and features linearly; x, what counts, and σ₁ of its Jacobian per text."""
    torch.manual_seed(0)
    A, M = torch.randn(5, 5), torch.randn(8, 6)
    counted = torch.tensor([[True] * 5, [False, True, True, True, False]])
    top = torch.linalg.svdvals(M.double())[0]
    sigma = torch.stack([torch.linalg.svdvals(A[c][:, c].double())[0] * top for c in counted])
    return lambda x: A @ x @ M, torch.randn(2, 5, 8), counted, sigma


def test_norm_of_a_linear_map_is_its_largest_singular_value() -> None:
    f, x, counted, sigma = mixing()
    found = norm(f, x, counted, [1, 2], 1e-6, 100)
    assert found.converged.all()
    np.testing.assert_allclose(found.value, sigma, rtol=1e-5)
    other_start = norm(f, x, counted, [8, 9], 1e-3, 100)
    np.testing.assert_allclose(other_start.value, sigma, rtol=2e-3)


def test_products_are_those_of_the_jacobian_of_counted_tokens() -> None:
    generator = torch.Generator().manual_seed(3)
    x, v = (torch.randn(1, 3, 4, generator=generator) for _ in range(2))
    u = torch.randn(1, 3, 8, generator=generator)
    counted = torch.tensor([[False, True, True]])

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.sin(), x.cumsum(1).square()], -1)

    J = torch.autograd.functional.jacobian(f, x)[0, 1:][:, :, 0, 1:].reshape(16, 8)
    found = jacobian.products(f, x, counted)
    pushed, pulled = found.push(v), found.pull(u)
    torch.testing.assert_close(pushed[0, 1:].flatten(), J @ v[0, 1:].flatten())
    torch.testing.assert_close(pulled[0, 1:].flatten(), J.T @ u[0, 1:].flatten())
    assert not pushed[0, 0].any() and not pulled[0, 0].any()


def test_reports_texts_that_do_not_converge() -> None:
    f, x, counted, _ = mixing()
    found = norm(f, x, counted, [1, 2], 1e-12, 2)
    assert not found.converged.any() and (found.iterations == 2).all()


def test_constant_function_has_zero_jacobian() -> None:
    x, counted = torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)
    found = norm(lambda at: 0 * at, x, counted, [1], 1e-3, 100)
    assert found.value.tolist() == [0] and found.converged.all()


def test_another_metric_has_its_own_norm() -> None:
    """A head that sees only what the first metric's largest direction is orthogonal to."""
    sigma, seen = torch.linspace(1, 3, 30), torch.linspace(2, 0, 30)
    x, counted = torch.zeros(1, 1, 30), torch.ones(1, 1, dtype=torch.bool)
    products = jacobian.products(lambda at: at * sigma, x, counted)
    start = torch.randn(1, 1, 30, generator=torch.Generator().manual_seed(0))
    metrics = [torch.clone, lambda u: u * seen.square()]
    states, logits = jacobian.jacobian_norms(products, start, metrics, 1e-5, 60)
    assert float(states.value) == pytest.approx(3, rel=1e-4)
    assert float(logits.value) == pytest.approx(float((sigma * seen).max()), rel=1e-4)
    (alone,) = jacobian.jacobian_norms(products, start, metrics[1:], 1e-5, 60)
    assert float(alone.value) == pytest.approx(float(logits.value), rel=1e-4)


def test_the_largest_singular_value_is_reached_within_the_tolerance() -> None:
    """A spectrum without a gap: the tolerance decides when two steps change little enough."""
    A = torch.diag(torch.linspace(1.0, 2.0, 40))
    x, counted = torch.zeros(1, 1, 40), torch.ones(1, 1, dtype=torch.bool)
    steps = []
    for tolerance in (1e-1, 1e-3, 1e-5):
        found = norm(lambda at: at @ A, x, counted, [5], tolerance, 40)
        assert found.converged.all() and float(found.value) <= 2 * (1 + 1e-6)
        steps.append(int(found.iterations))
    assert steps == sorted(set(steps)) and steps[0] >= 3, (
        "two quiet steps where changes fall slowly"
    )
    assert float(found.value) == pytest.approx(2, rel=1e-4)
    # As many steps as dimensions are exact.
    found = norm(lambda at: at @ A, x, counted, [5], 0.0, 40)
    assert float(found.value) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_texts_of_a_batch_end_when_they_would_alone(scale: float) -> None:
    """One token is only scaled, which is known at once; the other has a spectrum without a gap."""
    factors = scale * torch.stack([torch.ones(40), torch.linspace(1.0, 2.0, 40)])
    x, counted = torch.zeros(2, 2, 40), torch.eye(2, dtype=torch.bool)
    both = norm(lambda at: at * factors, x, counted, [5, 6], 1e-4, 40)
    assert both.converged.tolist() == [True, True]
    assert both.iterations[0] == 3 < both.iterations[1] < 40
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = norm(lambda at: at * factors, x[one], counted[one], [5 + row], 1e-4, 40)
        assert alone.iterations[0] == both.iterations[row] and alone.converged.all()
        assert float(alone.value[0]) == pytest.approx(float(both.value[row]), rel=1e-6)
        assert float(alone.value[0]) == pytest.approx((1 + row) * scale, rel=1e-3)
    factors[0] = 1e-4 * factors[1]
    found = norm(lambda at: at * factors, x, counted, [6, 6], 1e-4, 40)
    assert float(found.value[0] / found.value[1]) == pytest.approx(1e-4, rel=1e-5)
    assert found.iterations[0] == found.iterations[1]
    factors[0] = scale
    unit = norm(lambda at: at * factors / scale, x, counted, [5, 6], 1e-4, 40)
    assert unit.iterations.tolist() == both.iterations.tolist()


def test_the_search_ends_when_steps_change_little_and_ever_less() -> None:
    """With a gap, changes shrink by more than half: one step within the tolerance is enough."""
    sigma = torch.cat([torch.tensor([3.0]), torch.linspace(0.5, 1, 30)])
    x, counted = torch.zeros(1, 1, 31), torch.ones(1, 1, dtype=torch.bool)
    values = []
    for most in range(1, 8):
        values.append(float(norm(lambda at: at * sigma, x, counted, [5], 0.0, most).value))
    changes = np.abs(np.diff([0.0, *values])) / values
    found = norm(lambda at: at * sigma, x, counted, [5], 1e-2, 40)
    first = int(np.flatnonzero(changes <= 1e-2)[0])
    assert changes[first] < changes[first - 1] / 2
    assert found.converged.all() and int(found.iterations) == first + 1
    assert float(found.value) == pytest.approx(3, rel=1e-2)
