"""Matching pursuit against a loop over single activations in fp64, and what must hold of it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model_diffs.dictionaries import pursuit
from model_diffs.dictionaries.pursuit import Codes, decode, gram_of, matching_pursuit, merged


def unit(rows: int, width: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def activations(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (4 * torch.rand(rows, 1, generator=generator) - 2)
    return scale * (torch.randn(rows, width, generator=generator) + 0.5)


def check_against_loop(x: Tensor, atoms: Tensor, k: int, codes: Codes) -> int:
    """Follow each token alone in fp64, step by step; returns how many ended in a tie."""
    D = atoms.double().numpy()
    ties = 0
    for n, row in enumerate(x.double().numpy()):
        residual, size = row.copy(), np.linalg.norm(row)
        for step in range(k):
            products = D @ residual
            j = int(np.abs(products).argmax())
            taken, c = int(codes.indices[n, step]), float(codes.values[n, step])
            if taken != j:  # only where both are as good, to rounding
                assert abs(abs(products[taken]) - abs(products[j])) < 2e-6 * size
                ties += 1
                break
            assert abs(c - products[j]) < 1e-5 * size
            residual -= products[j] * D[j]
    return ties


@pytest.mark.parametrize("with_gram", [True, False])
@pytest.mark.parametrize(("width", "atoms", "k"), [(16, 40, 10), (48, 300, 40)])
def test_picks_and_coefficients_equal_those_of_a_loop_over_tokens(
    width: int, atoms: int, k: int, with_gram: bool
) -> None:
    D, x = unit(atoms, width, 1), activations(120, width, 2)
    codes = matching_pursuit(x, D, k, gram_of(D) if with_gram else None)
    assert check_against_loop(x, D, k, codes) <= 6


def test_codes_do_not_depend_on_batch_or_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    D, x = unit(200, 32, 3), activations(97, 32, 4)
    whole = matching_pursuit(x, D, 12, gram_of(D))
    for rows in (1, 7, 50):
        parts = [matching_pursuit(part, D, 12, gram_of(D)) for part in x.split(rows)]
        assert torch.equal(torch.cat([p.indices for p in parts]), whole.indices)
        values = torch.cat([p.values for p in parts])
        assert ((values - whole.values).abs() < 1e-5 * x.norm(dim=1, keepdim=True)).all()
    monkeypatch.setitem(pursuit.CHUNK_BYTES, "cpu", 4 * 200 * 3)
    assert pursuit.chunk_rows(200, x.device) == 3
    assert torch.equal(matching_pursuit(x, D, 12, gram_of(D)).indices, whole.indices)


def test_residuals_never_grow_and_fvu_equals_their_energy() -> None:
    D, x = unit(150, 24, 5), activations(80, 24, 6)
    before = torch.ones(80)
    for k in range(1, 30):
        codes = matching_pursuit(x, D, k, gram_of(D))
        left = (x - decode(codes, D)).double().norm(dim=1) / x.double().norm(dim=1)
        assert (left <= before + 1e-6).all()
        assert torch.allclose(codes.fvu.double(), left**2, atol=1e-6)
        before = left


def test_scaled_atom_is_coded_by_itself_alone() -> None:
    D = unit(100, 20, 7)
    scale = torch.tensor([3.0, -0.01, 1e4])[torch.arange(100) % 3]
    codes = matching_pursuit(scale[:, None] * D, D, 10, gram_of(D))
    assert torch.equal(codes.indices[:, 0], torch.arange(100))
    assert torch.allclose(codes.values[:, 0], scale, rtol=1e-5)
    assert (codes.values[:, 1:] == 0).all()
    assert (codes.fvu < 1e-6).all()


def test_residual_in_the_span_of_the_atoms_vanishes_with_steps() -> None:
    D = unit(6, 40, 8)
    x = activations(50, 6, 9) @ D
    left = []
    for k in (5, 20, 80, 300):
        codes = matching_pursuit(x, D, k, gram_of(D))
        error = (x - decode(codes, D)).norm(dim=1) / x.norm(dim=1)
        assert torch.allclose(codes.fvu, error**2, atol=2e-6)
        left.append(float(error.max()))
    assert left == sorted(left, reverse=True) and left[0] > 0.1 and left[-1] < 1e-5
    outside = torch.linalg.qr(torch.cat([D, activations(1, 40, 1)]).T)[0][:, -1]
    assert torch.allclose(matching_pursuit(outside[None], D, 50, gram_of(D)).fvu, torch.ones(1))


def test_merging_adds_up_repeated_picks_only() -> None:
    D = unit(5, 12, 10)
    codes = matching_pursuit(activations(60, 12, 11), D, 15, gram_of(D))
    found = merged(codes)
    for before, after in zip(
        zip(*codes[:2], strict=True), zip(*found[:2], strict=True), strict=True
    ):
        dense = torch.zeros(2, 5)
        for row, (indices, values) in enumerate((before, after)):
            dense[row].index_add_(0, indices, values)
        assert torch.allclose(dense[0], dense[1], rtol=1e-5, atol=1e-6)
        fired = after[0][after[1] != 0].tolist()
        assert len(fired) == len(set(fired))
    assert (codes.values != 0).sum() > (found.values != 0).sum()


def test_ties_take_the_first_atom_and_zeros_take_none() -> None:
    D = torch.eye(4)[[2, 0, 0, 1]]
    codes = matching_pursuit(torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 0]]), D, 3, gram_of(D))
    assert codes.indices[0].tolist() == [0, 1, 3]
    assert codes.values[1].tolist() == [0, 0, 0] and codes.fvu[1] == 0
    empty = matching_pursuit(torch.ones(2, 4), torch.empty(0, 4), 3, gram_of(torch.empty(0, 4)))
    assert empty.fvu.tolist() == [1, 1] and not empty.values.any()


# ── sizes and what is refused ─────────────────────────────────────────────────────────────────────


def test_products_of_atoms_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    D = unit(7, 5, 0)
    monkeypatch.setattr(pursuit, "GRAM_BYTES", 7 * 7 * 4)
    found = gram_of(D)
    assert found is not None
    torch.testing.assert_close(found, D @ D.T)
    monkeypatch.setattr(pursuit, "GRAM_BYTES", 7 * 7 * 4 - 1)
    assert gram_of(D) is None


def test_rows_at_a_time_fill_the_bytes_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, other = torch.device("cpu"), torch.device("mps")
    monkeypatch.setattr(pursuit, "CHUNK_BYTES", {"cpu": 4 * 60, "cuda": 4 * 600})
    assert [pursuit.chunk_rows(atoms, cpu) for atoms in (7, 60, 61, 1000)] == [8, 1, 1, 1]
    assert pursuit.chunk_rows(0, cpu) == 60
    assert pursuit.chunk_rows(7, other) == 85, "as on other accelerators"


@pytest.mark.parametrize(
    ("x", "atoms"),
    [
        (torch.zeros(2, 4).double(), torch.zeros(3, 4)),
        (torch.zeros(2, 4), torch.zeros(3, 4).double()),
        (torch.zeros(2, 4), torch.zeros(3, 5)),
    ],
)
def test_other_dtypes_and_widths_are_refused(x: Tensor, atoms: Tensor) -> None:
    with pytest.raises(ValueError, match="and torch"):
        matching_pursuit(x, atoms, 2, None)


def test_slots_that_are_not_used_name_the_first_atom() -> None:
    codes = Codes(
        torch.tensor([[2, 2, 1, 1]]), torch.tensor([[1.0, 2.0, 3.0, -3.0]]), torch.ones(1)
    )
    found = merged(codes)
    assert found.indices.tolist() == [[2, 0, 0, 0]] and found.values.tolist() == [[3.0, 0, 0, 0]]
    assert found.fvu.tolist() == [1]


def test_the_best_atom_of_each_row_is_found_off_the_cpu_too() -> None:
    """On a device without numbers: an atom and a coefficient per row come out."""
    products = torch.empty(3, 5, device="meta")
    j, c = pursuit._best(products, torch.empty_like(products), torch.empty(3, device="meta"))
    assert (j.shape, j.dtype) == ((3,), torch.int64) and (c.shape, c.dtype) == ((3,), torch.float32)
