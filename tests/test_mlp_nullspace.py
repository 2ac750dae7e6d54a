"""Step 10 against planted changes and LAPACK in fp64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_subspaces import SHAPES, matrix_of, orthonormal, planted

from model_diffs.diagnostics import mlp_nullspace, subspaces
from model_diffs.models import checkpoints


def alignment_row(W_A: torch.Tensor, dW: torch.Tensor, threshold: float = 0.99) -> SimpleNamespace:
    base, matrix = subspaces.decompose(W_A), matrix_of(tuple(W_A.shape))
    row = mlp_nullspace.alignment_row(matrix, base, W_A + dW, dW, threshold)
    return SimpleNamespace(**row)


@pytest.mark.parametrize("shape", SHAPES)
def test_energy_of_planted_changes_inside_and_outside_top_subspaces(
    shape: tuple[int, int],
) -> None:
    m, n = shape
    U, V = orthonormal(m, m, 1), orthonormal(n, n, 2)
    r = 4
    W = 5 * U[:, :r] @ V[:, :r].T + 1e-3 * U[:, r : r + 3] @ V[:, r : r + 3].T
    middle = torch.randn(r, r, dtype=torch.float64)
    expected = {
        "inside": (U[:, :r] @ middle @ V[:, :r].T, 0.0, 0.0),
        "outputs outside": (U[:, r : 2 * r] @ middle @ V[:, :r].T, 1.0, 0.0),
        "inputs outside": (U[:, :r] @ middle @ V[:, r : 2 * r].T, 0.0, 1.0),
        "outside": (U[:, r : 2 * r] @ middle @ V[:, r : 2 * r].T, 1.0, 1.0),
    }
    for where, (dW, left, right) in expected.items():
        row = alignment_row(W, dW)
        assert row.original_eff_rank == r, where
        assert row.nullspace_energy == pytest.approx(left, abs=1e-9), where
        assert row.input_nullspace_energy == pytest.approx(right, abs=1e-9), where
        assert (row.nullspace_dimension, row.input_nullspace_dimension) == (m - r, n - r)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.9, 0.99, 1.0])
def test_step_10_agrees_with_lapack(shape: tuple[int, int], threshold: float) -> None:
    torch.manual_seed(4)
    W = torch.randn(shape) * torch.linspace(3, 0.1, shape[1])
    dW = 0.3 * torch.randn(shape)
    row = alignment_row(W, dW, threshold)
    U, s, V = np.linalg.svd(W.double().numpy())
    D = dW.double().numpy()
    share = np.cumsum(s**2) / (s**2).sum()
    r = min(int((share < threshold - (threshold == 1) * 1e-15).sum()) + 1, len(s))
    assert row.original_eff_rank == r
    norm = np.linalg.norm(D)
    column, row_part = np.linalg.norm(U[:, :r].T @ D), np.linalg.norm(D @ V[:r].T)
    assert row.update_norm == pytest.approx(norm, rel=1e-9)
    assert row.original_norm == pytest.approx(np.linalg.norm(W.double()), rel=1e-9)
    assert row.colspace_projection_ratio == pytest.approx(column / norm, rel=1e-7)
    assert row.rowspace_projection_ratio == pytest.approx(row_part / norm, rel=1e-7)
    assert row.colspace_energy + row.nullspace_energy == pytest.approx(1, abs=1e-12)
    assert row.rowspace_energy + row.input_nullspace_energy == pytest.approx(1, abs=1e-12)
    outside = np.linalg.norm(D - U[:, :r] @ (U[:, :r].T @ D)) / norm
    assert row.nullspace_projection_ratio == pytest.approx(outside, abs=1e-6)
    s_B = np.linalg.svd((W + dW).double().numpy(), compute_uv=False)
    share = np.cumsum(s_B**2) / (s_B**2).sum()
    updated = min(int((share < threshold - (threshold == 1) * 1e-15).sum()) + 1, len(s_B))
    assert row.rank_increase == updated - r


def test_random_changes_have_the_expected_nullspace_energy() -> None:
    torch.manual_seed(5)
    W = planted((40, 24), [2.0] * 8)
    rows = [alignment_row(W, torch.randn(40, 24).double()) for _ in range(60)]
    for side in ("nullspace", "input_nullspace"):
        found = np.mean([getattr(row, f"{side}_energy") for row in rows])
        assert found == pytest.approx(getattr(rows[0], f"random_{side}_energy"), abs=0.01)
    assert rows[0].random_nullspace_energy == pytest.approx(32 / 40)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_unrelated_matrices_of_one_spectrum_have_the_expected_nullspace_energy(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(6)
    W = planted(shape, [3.0, 2.0, 2.0, 1.0, 0.3, 0.2])
    turned = [orthonormal(s, s, 10 + i) for i in range(60) for s in shape]
    pairs = zip(turned[::2], turned[1::2], strict=True)
    rows = [alignment_row(W, Q @ W @ R - W) for Q, R in pairs]
    assert rows[0].original_eff_rank == 4
    for side in ("nullspace", "input_nullspace"):
        found = np.mean([getattr(row, f"{side}_energy") for row in rows])
        assert found == pytest.approx(getattr(rows[0], f"unrelated_{side}_energy"), abs=0.01)
    rescaled = alignment_row(W, 0.1 * W)
    assert rescaled.nullspace_energy == pytest.approx(rescaled.own_nullspace_energy, abs=1e-9)
    assert rescaled.own_nullspace_energy == pytest.approx(0.13 / 18.13)


def test_unchanged_matrix_has_no_shares_and_layers_weight_by_energy() -> None:
    W = torch.randn(16, 12)
    still = alignment_row(W, torch.zeros(16, 12))
    assert still.nullspace_energy is still.colspace_projection_ratio is None
    assert still.rank_increase == 0 and still.relative_update_size == 0
    moved = alignment_row(W, torch.randn(16, 12))
    (layer,) = mlp_nullspace.layer_rows([vars(still), vars(moved)])
    assert (layer["count_mats"], layer["count_changed"]) == (2, 1)
    assert layer["nullspace_energy"] == pytest.approx(moved.nullspace_energy)
    unrelated = moved.unrelated_nullspace_energy
    assert layer["unrelated_nullspace_energy"] == pytest.approx(unrelated)
    (unchanged,) = mlp_nullspace.layer_rows([vars(still)])
    assert unchanged["nullspace_energy"] is None and unchanged["update_norm"] == 0


def test_a_row_of_step_10_by_hand() -> None:
    """W = diag(4, 2, 1) in 4 × 3 moves by 2 outside its two leading directions and 1 inside."""
    W, dW = torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    W[0, 0], W[1, 1], W[2, 2] = 4, 2, 1
    dW[3, 0], dW[0, 2] = 2.0, 1.0
    row = vars(alignment_row(W, dW, 0.95))  # 20 of 21: two directions hold 95 %
    assert (row["original_eff_rank"], row["shape"], row["layer"]) == (2, "4x3", 0)
    assert (row["nullspace_dimension"], row["input_nullspace_dimension"]) == (2, 1)
    # W + dW has the singular values of [[4, 0, 1], [0, 2, 0], [0, 0, 1], [2, 0, 0]].
    sigma = np.linalg.svd((W + dW).numpy(), compute_uv=False)
    updated = int((np.cumsum(sigma**2) < 0.95 * (sigma**2).sum()).sum()) + 1
    assert row["updated_eff_rank"] == updated and row["rank_increase"] == updated - 2
    expected = {
        "update_norm": math.sqrt(5),
        "original_norm": math.sqrt(21),
        "relative_update_size": math.sqrt(5 / 21),
        "colspace_energy": 0.2,
        "nullspace_energy": 0.8,
        "random_nullspace_energy": 0.5,
        "colspace_projection_ratio": math.sqrt(0.2),
        "nullspace_projection_ratio": math.sqrt(0.8),
        "rowspace_energy": 0.8,
        "input_nullspace_energy": 0.2,
        "random_input_nullspace_energy": 1 / 3,
        "rowspace_projection_ratio": math.sqrt(0.8),
        "input_nullspace_projection_ratio": math.sqrt(0.2),
        "own_nullspace_energy": 1 / 21,
        "unrelated_nullspace_energy": (1 / 21 + 0.5) / 2,
        "unrelated_input_nullspace_energy": (1 / 21 + 1 / 3) / 2,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    zero = vars(alignment_row(torch.zeros(4, 3).double(), dW, 0.95))
    assert zero["relative_update_size"] is zero["own_nullspace_energy"] is None
    assert zero["original_eff_rank"] == 0 and zero["nullspace_energy"] == pytest.approx(1)


def test_blocks_add_up_their_matrices_by_hand() -> None:
    def row(layer: int, update: float, share: float | None) -> dict[str, object]:
        shares = dict.fromkeys((*mlp_nullspace.ENERGIES, *mlp_nullspace.NULLS), share)
        norms = {"update_norm": update, "original_norm": 12.0 if layer else 5.0}
        ranks = {"original_eff_rank": 4 + layer, "rank_increase": int(update)}
        return {"layer": layer, **norms, **shares, **ranks}

    rows = [row(1, 3.0, 0.5), row(0, 0.0, None), row(1, 4.0, 0.25), row(1, 0.0, None)]
    first, second = mlp_nullspace.layer_rows(rows)
    assert (first["layer"], first["count_mats"], first["count_changed"]) == (0, 1, 0)
    assert first["update_norm"] == first["relative_update_size"] == 0
    assert (second["layer"], second["count_mats"], second["count_changed"]) == (1, 3, 2)
    assert second["update_norm"] == 5 and second["original_norm"] == math.sqrt(3 * 144)
    assert second["relative_update_size"] == pytest.approx(5 / math.sqrt(432))
    assert (second["mean_original_eff_rank"], second["mean_rank_increase"]) == (5, 7 / 3)
    for name in (*mlp_nullspace.ENERGIES, *mlp_nullspace.NULLS):
        assert first[name] is None
        assert second[name] == pytest.approx((9 * 0.5 + 16 * 0.25) / 25)


def test_large_matrices_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in SHAPES:
        W, dW = planted(shape, [3.0, 2.0, 1.0, 0.5]), planted(shape, [2.0, 1.0], 5)
        whole = alignment_row(W, dW)
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "_CHUNK", 7 * 24)  # seven rows of the longer side
            parts = alignment_row(W, dW)
        assert vars(parts) == {
            name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            for name, value in vars(whole).items()
        }
        assert 0.01 < whole.nullspace_energy < 0.99


def test_nothing_lies_outside_a_subspace_that_is_the_whole_side() -> None:
    """Exactly: the root of a rounding error would look like a share."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        W, dW = torch.randn(2, 9, 6, generator=generator)
        for turn in (lambda x: x, torch.t):
            row = alignment_row(turn(W), turn(dW), 1.0)
            energies = (row.nullspace_energy, row.input_nullspace_energy)
            assert min(energies) == 0 < max(energies)
        row = alignment_row(W[:6], dW[:6], 1.0)
        assert row.nullspace_energy == row.input_nullspace_energy == 0


def test_a_matrix_of_zeros_leaves_its_block_without_what_its_spectrum_gives() -> None:
    zero, some = torch.zeros(4, 3), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    rows = [vars(alignment_row(W, torch.ones(4, 3))) for W in (zero, some)]
    (layer,) = mlp_nullspace.layer_rows(rows[:1])
    assert layer["relative_update_size"] is None and layer["update_norm"] == math.sqrt(12)
    (layer,) = mlp_nullspace.layer_rows(rows)
    assert layer["nullspace_energy"] == pytest.approx((1 + rows[1]["nullspace_energy"]) / 2)
    assert [layer[name] for name in mlp_nullspace.NULLS] == [None] * 3
