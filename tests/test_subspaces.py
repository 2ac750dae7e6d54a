"""Steps 7 and 10 against planted changes and LAPACK in fp64."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from model_diffs.core import script, step
from model_diffs.core.errors import BadInput
from model_diffs.diagnostics import subspaces
from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint

ROOT = Path(__file__).parent.parent
SHAPES = [(24, 24), (40, 24), (24, 40)]


def matrix_of(shape: tuple[int, int]) -> Matrix:
    return Matrix("layers.0.mlp.fc1.weight", "fc1", 0, "mlp", "mlp_in", shape)


def orthonormal(side: int, k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(side, k, generator=generator, dtype=torch.float64))[0]


def planted(shape: tuple[int, int], sigma: list[float], seed: int = 0) -> torch.Tensor:
    """W = U diag(sigma) Vᵀ with random U, V."""
    U, V = (orthonormal(side, len(sigma), seed + i) for i, side in enumerate(shape))
    return (U * torch.tensor(sigma, dtype=torch.float64)) @ V.T


def subspace_row(W_A: torch.Tensor, W_B: torch.Tensor, k: int) -> SimpleNamespace:
    base, matrix = subspaces.decompose(W_A), matrix_of(tuple(W_A.shape))
    row = subspaces.subspace_row(matrix, base, W_B, W_B - W_A, k, seed=42)
    return SimpleNamespace(**row)


# ── which matrices ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "mixtral"])
def test_sample_has_its_size_and_is_even_over_components_and_layers(
    family: str, tmp_path: Path
) -> None:
    folder = tiny_models.save(family, tmp_path / family, num_hidden_layers=6)
    every = Checkpoint.open(str(folder)).matrices()
    for count in (7, 20, 0, 10_000):
        chosen = subspaces.sample_matrices(every, count, seed=1)
        assert len(chosen) == (min(count, len(every)) if count else len(every))
        assert len({m.name for m in chosen}) == len(chosen)
        assert all(len(m.shape) == 2 for m in chosen)
    chosen = subspaces.sample_matrices(every, 20, seed=1)
    available = Counter(m.component for m in every)
    drawn = Counter(m.component for m in chosen)
    with_rest = [drawn[c] for c in available if drawn[c] < available[c]]
    assert max(with_rest) - min(with_rest) <= 1
    layers = Counter(m.layer for m in chosen if m.layer >= 0)
    assert len(layers) == 6
    assert max(layers.values()) - min(layers.values()) <= 1


def test_sample_depends_on_the_seed_only(tmp_path: Path) -> None:
    every = Checkpoint.open(str(tiny_models.save("llama", tmp_path / "m"))).matrices()
    draws = [[m.name for m in subspaces.sample_matrices(every, 5, seed)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


# ── step 7 ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [1e-6, 0.01, 0.3, 1.2, math.pi / 2])
def test_a_rotation_by_a_known_angle_gives_that_angle(shape: tuple[int, int], angle: float) -> None:
    k, sigma = 3, [9.0, 8.0, 7.0, 0.3, 0.2, 0.1]
    W_A = planted(shape, sigma)
    Q = orthonormal(shape[0], 6, seed=0)  # the left vectors of W_A
    i, j = Q[:, 0], Q[:, 4]  # turn a leading direction towards one that is not
    plane = torch.stack([i, j], 1)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    eye = torch.eye(shape[0], dtype=torch.float64)
    R = eye + plane @ (turn - torch.eye(2, dtype=torch.float64)) @ plane.T
    row = subspace_row(W_A, R @ W_A, k)
    assert row.grassmann_distance == pytest.approx(angle, rel=1e-5)
    assert row.subspace_alignment == pytest.approx((2 + math.cos(angle)) / 3, abs=1e-9)
    assert row.grassmann_right == pytest.approx(0, abs=1e-6), "inputs were not turned"
    assert row.singular_value_ratio == pytest.approx(1, abs=1e-9)
    right = subspace_row(W_A.T.contiguous(), (R @ W_A).T.contiguous(), k)
    assert right.grassmann_right == pytest.approx(angle, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_step_7_agrees_with_lapack(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    W_A = torch.randn(shape)
    W_B = W_A + 0.2 * torch.randn(shape)
    row = subspace_row(W_A, W_B, 5)
    A, B = W_A.double().numpy(), W_B.double().numpy()
    (U_A, s_A, V_A), (U_B, s_B, V_B) = np.linalg.svd(A), np.linalg.svd(B)
    s = np.linalg.svd((W_B - W_A).double().numpy(), compute_uv=False)
    share = np.cumsum(s**2) / (s**2).sum()
    assert row.effective_rank == int((share < 0.99).sum()) + 1
    assert row.top10_variance_ratio == pytest.approx(share[9], rel=1e-9)
    assert row.max_singular_value == pytest.approx(s[0], rel=1e-9)
    assert row.singular_value_decay == pytest.approx(s[10] / s[0], rel=1e-9)
    assert row.singular_value_ratio == pytest.approx(s_B[0] / s_A[0], rel=1e-9)
    left = scipy.linalg.subspace_angles(U_A[:, :5], U_B[:, :5])
    right = scipy.linalg.subspace_angles(V_A[:5].T, V_B[:5].T)
    assert row.subspace_alignment == pytest.approx(np.cos(left).mean(), rel=1e-7)
    assert row.grassmann_distance == pytest.approx(np.linalg.norm(left), rel=1e-7)
    assert row.alignment_right == pytest.approx(np.cos(right).mean(), rel=1e-7)
    assert row.grassmann_right == pytest.approx(np.linalg.norm(right), rel=1e-7)


def test_a_matrix_against_itself_has_alignment_one() -> None:
    W = torch.randn(30, 20)
    row = subspace_row(W, W.clone(), 4)
    assert row.max_singular_value == 0
    assert row.effective_rank is row.top10_variance_ratio is row.singular_value_decay is None
    assert row.subspace_alignment == row.alignment_right == row.singular_value_ratio == 1
    assert row.grassmann_distance == row.grassmann_right == 0


def test_a_scaled_matrix_has_alignment_one() -> None:
    W = torch.randn(30, 20)
    row = subspace_row(W, 1.5 * W, 4)
    assert row.singular_value_ratio == pytest.approx(1.5, rel=1e-6)
    assert row.subspace_alignment == pytest.approx(1, abs=1e-6)


def test_subspaces_have_at_most_the_numerical_rank() -> None:
    W = planted((30, 20), [3.0, 2.0, 1.0]).float()
    assert subspace_row(W, W + 0.01 * torch.randn(30, 20), 10).k == 3
    zero = subspace_row(torch.zeros(30, 20), torch.randn(30, 20), 10)
    assert zero.k == 0
    assert zero.subspace_alignment is zero.singular_value_ratio is zero.random_alignment is None


def test_random_subspaces_align_as_pairs_of_random_subspaces_do() -> None:
    side, k = 60, 6
    generator = np.random.default_rng(0)
    cosines = []
    for _ in range(200):
        a, b = (np.linalg.qr(generator.standard_normal((side, k)))[0] for _ in range(2))
        cosines.append(np.linalg.svd(a.T @ b, compute_uv=False).mean())
    spread = np.std(cosines) / math.sqrt(16)
    ours = subspaces.random_alignment(side, k, 42)
    assert abs(ours - np.mean(cosines)) < 4 * spread
    assert ours == subspaces.random_alignment(side, k, 42)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_random_alignment_is_that_of_each_side(shape: tuple[int, int]) -> None:
    row = subspace_row(torch.randn(shape), torch.randn(shape), 6)
    generator = np.random.default_rng(0)
    for side, found in zip(shape, (row.random_alignment, row.random_alignment_right), strict=True):
        cosines = []
        for _ in range(200):
            a, b = (np.linalg.qr(generator.standard_normal((side, 6)))[0] for _ in range(2))
            cosines.append(np.linalg.svd(a.T @ b, compute_uv=False).mean())
        assert abs(found - np.mean(cosines)) < 4 * np.std(cosines) / math.sqrt(16)
    assert (row.shape0, row.shape1) == shape and row.k == 6
    assert row.name.endswith("weight") and (row.component, row.layer) == ("mlp_in", 0)


def test_columns_of_a_small_change_by_hand() -> None:
    """Ten singular values: all energy lies in the first ten, and there is no eleventh."""
    W, dW = planted((12, 10), [9.0 - i / 2 for i in range(10)]), planted((12, 10), [2.0, 1.0], 5)
    row = subspace_row(W, W + dW, 3)
    assert row.singular_value_decay is None and row.top10_variance_ratio == pytest.approx(1)
    assert row.max_singular_value == pytest.approx(2) and row.effective_rank == 2
    eleven = planted((12, 11), [4.0] * 10 + [3.0], 5)
    row = subspace_row(torch.eye(12, 11).double(), torch.eye(12, 11).double() + eleven, 3)
    assert row.singular_value_decay == pytest.approx(0.75)
    assert row.top10_variance_ratio == pytest.approx(160 / 169)


def test_numerical_rank_counts_what_fp32_resolves() -> None:
    eps = torch.finfo(torch.float32).eps
    sigma = torch.tensor([2.0, 1.0, 2 * 50 * eps * 1.01, 2 * 50 * eps, 0.0], dtype=torch.float64)
    assert subspaces.numerical_rank(sigma, (5, 50)) == 3
    assert subspaces.numerical_rank(sigma, (50, 5)) == 3
    assert subspaces.numerical_rank(torch.zeros(3), (3, 3)) == 0


def test_angles_of_planes_by_hand() -> None:
    """Both formulas, from the cosine above 45° and from the sine below, and their order."""
    eye = torch.eye(6, dtype=torch.float64)
    angles = torch.tensor([1e-7, math.pi / 4, 1.2], dtype=torch.float64)
    turned = eye[:, :3] * angles.cos() + eye[:, 3:] * angles.sin()
    found = subspaces.principal_angles(eye[:, :3], turned[:, [2, 0, 1]])
    torch.testing.assert_close(found, angles, rtol=1e-7, atol=1e-12)


def test_a_matrix_of_zeros_has_no_subspaces() -> None:
    zero, some = torch.zeros(6, 4), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for W_A, W_B in ((zero, some), (some, zero), (zero, zero)):
        row = vars(subspace_row(W_A, W_B, 3))
        empty = ["subspace_alignment", "grassmann_distance", "alignment_right", "grassmann_right"]
        empty += ["random_alignment", "random_alignment_right"]
        assert row["k"] == 0 and [row[name] for name in empty] == [None] * 6
        assert row["singular_value_ratio"] == (0 if W_A is some else None)


def test_random_pairs_are_sixteen_draws_of_the_seed() -> None:
    for side, k, seed in ((9, 2, 5), (9, 2, 6), (7, 4, 5)):
        generator, means = torch.Generator().manual_seed(seed), []
        for _ in range(16):
            drawn = torch.randn(side, k, generator=generator, dtype=torch.float64)
            first = np.linalg.qr(drawn.numpy())[0][:k]
            means.append(np.linalg.svd(first, compute_uv=False).mean())
        found = subspaces.random_alignment.__wrapped__(side, k, seed)
        assert found == pytest.approx(np.mean(means), abs=1e-12)


def test_changes_are_measured_matrix_by_matrix_in_fp32(tmp_path: Path) -> None:
    folders = [tiny_models.save("llama", tmp_path / str(i), seed=i) for i in range(3)]
    for folder in folders:
        half = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
        save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    base, *changed = (Checkpoint.open(str(folder)) for folder in folders)
    stored = [load_file(folder / "model.safetensors") for folder in folders]
    matrices = subspaces.mlp_matrices(base)
    assert {m.name for m in matrices} == {name for name in stored[0] if ".mlp." in name}

    def measure(matrix: Matrix, found: Any, W_B: torch.Tensor, dW: torch.Tensor) -> dict[str, Any]:
        return {"name": matrix.name, "W_A": found.W, "W_B": W_B, "dW": dW}

    rows = subspaces.measure_changes(base, changed, matrices[1:3], torch.device("cpu"), measure)
    assert [[row["name"] for row in of] for of in rows] == 2 * [[m.name for m in matrices[1:3]]]
    for of, tensors in zip(rows, stored[1:], strict=True):
        for row in of:
            W_A, W_B = (one[row["name"]].float() for one in (stored[0], tensors))
            assert torch.equal(row["W_A"], W_A) and torch.equal(row["W_B"], W_B)
            assert torch.equal(row["dW"], W_B - W_A)


# ── scripts ───────────────────────────────────────────────────────────────────────────────────────


def run(name: str, *words: object) -> None:
    script.execute(step.load_script(ROOT / name), [*map(str, words)])


def test_scripts_find_the_one_changed_matrix_and_write_all_files(tmp_path: Path) -> None:
    """Model B differs from A in one MLP matrix, stored [in, out]; a third one not at all."""
    a = tiny_models.save("gpt2", tmp_path / "a")
    b = tiny_models.save("gpt2", tmp_path / "b")
    same = tiny_models.save("gpt2", tmp_path / "same")
    weights = load_file(b / "model.safetensors")
    name = next(n for n in weights if n.endswith("h.1.mlp.c_fc.weight"))
    W = weights[name]  # [in, out] = [32, 128]
    V = torch.linalg.svd(W.double())[2]
    # Outputs of this Conv1D are its columns: dW writes where W, of rank 32 in 128, never does.
    weights[name] = W + (torch.randn(32, 4).double() @ V[100:104]).float()
    save_file(weights, b / "model.safetensors", metadata={"format": "pt"})

    out = tmp_path / "outputs"
    models = ("--model-a", a, "--model-b", b, same, "--outroot", out)
    run("null_space_analysis.py", *models, "--num-samples", 0, "--k", 5)
    table = pd.read_csv(out / "a__to__b/null_space_analysis/null_space_results.csv")
    changed = table[table["max_singular_value"] > 0]
    assert changed["name"].tolist() == [name]
    assert changed["effective_rank"].tolist() == [4]
    assert changed[["shape0", "shape1"]].to_numpy().tolist() == [[128, 32]]
    still = pd.read_csv(out / "a__to__same/null_space_analysis/null_space_results.csv")
    assert still["effective_rank"].isna().all()
    assert (still["subspace_alignment"] == 1).all() and (still["alignment_right"] == 1).all()

    run("mlp_nullspace_alignment.py", *models)
    folder = out / "a__to__b/mlp_nullspace"
    table = pd.read_csv(folder / "mlp_nullspace_metrics.csv")
    row = table[table["name"] == name].iloc[0]
    assert row["type"] == "mlp_in" and row["shape"] == "128x32"
    assert row["nullspace_energy"] == pytest.approx(1, abs=1e-6)
    assert table["nullspace_energy"].notna().sum() == 1
    layers = pd.read_csv(folder / "layer_nullspace_summary.csv")
    assert layers["count_changed"].tolist() == [0, 1, 0]
    for results in ("null_space_analysis", "mlp_nullspace"):
        for comparison in ("a__to__b", "a__to__same"):
            here = out / comparison / results
            assert len(list(here.glob("*.png"))) == 1
            assert json.loads((here / "summary.json").read_text())
            assert json.loads((here / "run.json").read_text())["models"]


def test_models_of_different_shapes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    a = tiny_models.save("llama", tmp_path / "a")
    b = tiny_models.save("llama", tmp_path / "b", intermediate_size=48)
    out = tmp_path / "out"
    for name in ("null_space_analysis.py", "mlp_nullspace_alignment.py"):
        with pytest.raises(BadInput, match="intermediate_size"):
            run(name, "--model-a", a, "--model-b", b, "--outroot", out)
        assert not [path for path in out.rglob("*") if path.is_file()], "nothing is written"
