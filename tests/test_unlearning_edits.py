"""Random changes of one matrix, against the same computed here."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model_diffs.models import checkpoints
from model_diffs.models.architectures import OUTSIDE, Matrix
from model_diffs.unlearning import edits
from model_diffs.unlearning.losses import generator_of
from model_diffs.unlearning.settings import Options

SEED = 3
SHAPES = [(7, 4), (4, 7)]


def options(spectrum: str = "gaussian", seed: int = SEED) -> Any:
    return SimpleNamespace(seed=seed, spectrum=spectrum, device="cpu")


def matrix(shape: tuple[int, int], name: str = "m") -> Matrix:
    return Matrix(name, name, 0, "mlp", "mlp_in", shape)


def change(shape: tuple[int, int]) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def haar(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """The one QR decomposition with a positive diagonal, by Gram–Schmidt in fp64."""
    found: list[torch.Tensor] = []
    for column in torch.randn(rows, columns, generator=generator).double().T:
        for other in found:
            column = column - (other @ column) * other
        found.append(column / column.norm())
    return torch.stack(found, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_noise_is_a_seeded_draw_of_the_change_s_norm(shape: tuple[int, int]) -> None:
    dW = change(shape)
    drawn = torch.randn(shape, generator=generator_of(SEED, "noise", "m"))
    found = edits.noise(matrix(shape), torch.ones_like(dW), dW, options())
    torch.testing.assert_close(found, drawn / drawn.norm() * dW.norm())
    for other in (
        edits.noise(matrix(shape, "other"), torch.ones_like(dW), dW, options()),
        edits.noise(matrix(shape), torch.ones_like(dW), dW, options(seed=4)),
    ):
        assert not torch.allclose(other, found)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_kept_spectrum_stands_between_seeded_directions(shape: tuple[int, int]) -> None:
    dW = change(shape)
    generator = generator_of(SEED, "noise", "m")
    left, right = (haar(side, 4, generator) for side in shape)
    sigma = torch.linalg.svdvals(dW.double())
    found = edits.noise(matrix(shape), torch.ones_like(dW), dW, options("keep"))
    expected = ((left * sigma) @ right.T).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spectrum", ["gaussian", "keep"])
def test_no_change_stays_none(spectrum: str) -> None:
    zero = torch.zeros(7, 4)
    assert torch.equal(
        edits.noise(matrix((7, 4)), torch.ones_like(zero), zero, options(spectrum)), zero
    )


def test_norms_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_CHUNK", 8)
    dW = change((7, 4))
    assert edits.frobenius(dW) == pytest.approx(math.sqrt(float(dW.double().square().sum())))


def test_an_edit_is_found_by_its_name() -> None:
    assert edits.EDITS["noise"] is edits.noise


def test_quantised_weights_have_few_levels_a_row_and_only_in_blocks() -> None:
    W = change((6, 40))
    given = Options(model="m", method="quantise", bits=3)
    inside, outside = matrix((6, 40)), dataclasses.replace(matrix((6, 40)), layer=OUTSIDE)
    rounded = W + edits.quantise(inside, W, torch.zeros_like(W), given)
    assert all(len(row.unique()) <= 2**3 - 1 for row in rounded)
    step = W.abs().amax(1, keepdim=True) / 3
    assert bool(((rounded - W).abs() <= step / 2 + 1e-6).all())
    assert not edits.quantise(outside, W, torch.zeros_like(W), given).any()
