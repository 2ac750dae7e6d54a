"""Sums over codes that are written down here, against loops over single tokens and documents."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from model_diffs.dictionaries.pursuit import Codes
from model_diffs.dictionaries.sums import BatchCodes, ModelTotals, sum_codes

LATENTS, K = 5, 3
LENGTHS = [4, 1, 3, 5, 2, 3, 4, 2]
SOURCES = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def codes_of(seed: int) -> list[Codes]:
    """Merged codes of each document: distinct latents per token, a fifth of the slots unused."""
    draw = np.random.default_rng(seed)
    found = []
    for length in LENGTHS:
        indices = np.stack([draw.permutation(LATENTS)[:K] for _ in range(length)])
        values = np.round(draw.normal(size=(length, K)), 2) * (draw.random((length, K)) > 0.2)
        fvu = draw.uniform(size=length)
        found.append(
            Codes(
                torch.from_numpy(indices),
                torch.from_numpy(values).float(),
                torch.from_numpy(fvu).float(),
            )
        )
    return found


def batch_of(codes: list[Codes], rows: list[int]) -> BatchCodes:
    together = Codes(*(torch.cat([codes[row][i] for row in rows]) for i in range(3)))
    return sum_codes(together, places_of(rows), len(rows), LATENTS)


def places_of(rows: list[int]) -> torch.Tensor:
    """Tokens count from position 1."""
    return torch.tensor(
        [(at, position) for at, row in enumerate(rows) for position in range(1, LENGTHS[row] + 1)]
    )


def test_sums_of_a_batch_equal_a_loop_over_tokens() -> None:
    codes, rows = codes_of(0), [3, 1, 0]
    found = batch_of(codes, rows)
    for at, row in enumerate(rows):
        used = defaultdict(list)
        for position, (indices, values) in enumerate(zip(*codes[row][:2], strict=True), start=1):
            for latent, value in zip(indices.tolist(), values.tolist(), strict=True):
                if value:
                    used[latent].append((value, position))
        for latent in range(LATENTS):
            of = used[latent]
            assert found.fires[at, latent] == len(of)
            assert found.sums[at, latent] == pytest.approx(sum(value for value, _ in of))
            peak, position = max(of, default=(-np.inf, -1))
            assert found.peaks[at, latent] == pytest.approx(peak)
            assert found.peak_positions[at, latent] == position
        assert found.unexplained[at] == pytest.approx(float(codes[row].fvu.sum()), rel=1e-6)
        assert found.counts[at] == LENGTHS[row]
    assert all(part.dtype == torch.float64 for part in (found.sums, found.fires, found.counts))


def test_a_peak_at_the_first_position_is_found_there() -> None:
    """Of equal peaks the last position counts, of lower coefficients none."""
    values = torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.5, 0.0]])
    codes = Codes(torch.tensor([[0, 1]] * 3), values, torch.zeros(3))
    found = sum_codes(codes, torch.tensor([[0, 0], [0, 1], [0, 2]]), 1, 3)
    assert found.peak_positions.tolist() == [[0, 1, -1]]
    assert found.peaks.tolist() == [[2.0, 1.0, -torch.inf]]


def test_documents_without_tokens_have_empty_sums() -> None:
    codes = Codes(torch.tensor([[0], [0]]), torch.tensor([[2.0], [1.0]]), torch.ones(2))
    found = sum_codes(codes, torch.tensor([[1, 0], [1, 1]]), batch=4, latents=2)
    assert found.counts.tolist() == found.unexplained.tolist() == [0, 2, 0, 0]
    assert found.sums.tolist() == [[0, 0], [3, 0], [0, 0], [0, 0]]


def test_sums_are_the_same_after_a_file(tmp_path: Path) -> None:
    found = batch_of(codes_of(0), [0, 1])
    found.save(tmp_path / "codes.npz")
    again = BatchCodes.load(tmp_path / "codes.npz")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def totals(changed: list[Codes], base: list[Codes], contexts: int = 3) -> ModelTotals:
    found = ModelTotals(LATENTS, SOURCES, contexts)
    for rows in ([3, 1, 0], [5, 2], [4, 7, 6]):
        found.add(batch_of(changed, rows), batch_of(base, rows), rows)
    return found


def dense(codes: list[Codes]) -> np.ndarray:
    """`[documents, m]` sums of coefficients."""
    found = np.zeros((len(codes), LATENTS))
    for row, one in enumerate(codes):
        np.add.at(found[row], one.indices.numpy().ravel(), one.values.double().numpy().ravel())
    return found


def test_totals_equal_those_over_all_documents() -> None:
    codes = codes_of(1)
    found, sums = totals(codes, codes_of(2)), dense(codes)
    tokens = sum(LENGTHS)
    fires = np.zeros(LATENTS)
    for one in codes:
        np.add.at(fires, one.indices[one.values != 0].numpy(), 1)
    np.testing.assert_allclose(found.mean, sums.sum(0) / tokens, rtol=1e-12)
    np.testing.assert_allclose(found.frequency, fires / tokens, rtol=1e-12)
    assert found.activity.shape == (2, LATENTS)
    for source in (0, 1):
        expected = np.abs(sums[source == SOURCES]).sum(0)
        np.testing.assert_allclose(found.activity[source], expected, atol=1e-9)
    np.testing.assert_array_equal(found.counts, LENGTHS)
    unexplained = [float(one.fvu.double().sum()) for one in codes]
    np.testing.assert_allclose(found.unexplained, unexplained, rtol=1e-6)


def test_contexts_are_the_highest_documents_with_their_positions() -> None:
    codes = codes_of(3)
    found = totals(codes, codes)
    for latent in range(LATENTS):
        peaks = []
        for row, one in enumerate(codes):
            at = [(v, p) for p, (js, vs) in enumerate(zip(*one[:2], strict=True), start=1)
                  for j, v in zip(js.tolist(), vs.tolist(), strict=True)
                  if j == latent and v]  # fmt: skip
            if at:
                peaks.append((*max(at), row))
        best = sorted(peaks, key=lambda peak: -peak[0])[:3]
        assert found.top.values[:, latent].tolist() == pytest.approx([v for v, _, _ in best])
        assert found.top.documents[:, latent].tolist() == [row for _, _, row in best]
        assert found.top.positions[:, latent].tolist() == [p for _, p, _ in best]
    few = ModelTotals(LATENTS, SOURCES, 4)
    few.add(batch_of(codes, [0]), batch_of(codes, [0]), [0])
    assert (few.top.values[1:] == -torch.inf).all() and (few.top.documents[1:] == -1).all()


def test_kept_codes_come_in_reading_order() -> None:
    codes, names = codes_of(4), np.array([7, 6, 5, 4, 3, 2, 1, 0])
    found = ModelTotals(LATENTS, SOURCES, 1)
    assert found.activations() is None
    for rows in ([3, 1, 0], [5, 2]):
        together = Codes(*(torch.cat([codes[row][i] for row in rows]) for i in range(3)))
        found.keep(together, places_of(rows), names[rows])
    kept = found.activations()
    assert kept is not None
    order = sorted((0, 1, 2, 3, 5), key=lambda row: names[row])
    assert kept.documents.tolist() == [names[row] for row in order for _ in range(LENGTHS[row])]
    assert kept.positions.tolist() == [p for row in order for p in range(1, LENGTHS[row] + 1)]
    assert torch.equal(kept.indices, torch.cat([codes[row].indices for row in order]))
    assert torch.equal(kept.values, torch.cat([codes[row].values for row in order]))


# ── changes ───────────────────────────────────────────────────────────────────────────────────────


def test_errors_and_p_values_equal_their_formulas() -> None:
    changed, base = codes_of(5), codes_of(6)
    table = totals(changed, base).changes()
    d, n = dense(changed) - dense(base), np.array(LENGTHS, float)
    ratio = d.sum(0) / n.sum()
    np.testing.assert_allclose(table["difference"], ratio, atol=1e-9)
    residual = d - ratio * n[:, None]
    error = np.sqrt((residual**2).sum(0) * 8 / 7) / n.sum()
    np.testing.assert_allclose(table["std_error"], error, rtol=1e-6)
    expected = []
    for latent in range(LATENTS):
        used = [
            any(((one.indices == latent) & (one.values != 0)).any() for one in pair)
            for pair in zip(changed, base, strict=True)
        ]
        of = d[used, latent]
        assert table["documents"][latent] == len(of) >= 6
        expected.append(max(stats.ttest_1samp(of, 0).pvalue, 2.0 ** (1 - len(of))))
    np.testing.assert_allclose(table["p_value"], expected, rtol=1e-6)
    by_rank = np.sort(expected) * LATENTS / np.arange(1, LATENTS + 1)
    q = np.minimum.accumulate(by_rank[::-1])[::-1][np.argsort(np.argsort(expected))]
    np.testing.assert_allclose(table["q_value"], np.minimum(q, 1), rtol=1e-6)


def planted(differences: list[float], lengths: int = 2) -> ModelTotals:
    """One latent whose sum differs by so much in each document."""
    count = len(differences)
    found = ModelTotals(1, torch.zeros(count), 1)
    shape = (count, 1)
    zeros, ones = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    nowhere = torch.zeros(shape, dtype=torch.int64)
    of = torch.tensor(differences, dtype=torch.float64)[:, None]
    counts = torch.full((count,), float(lengths), dtype=torch.float64)
    base, changed = (
        BatchCodes(sums, ones, ones.float(), nowhere, counts / 4, counts) for sums in (zeros, of)
    )
    found.add(changed, base, list(range(count)))
    return found


def test_equal_changes_in_m_documents_have_the_p_value_of_m_signs() -> None:
    for count, tested in ((5, False), (6, True), (9, True)):
        row = planted([0.5] * count).changes().iloc[0]
        assert row["documents"] == count and row["difference"] == 0.25
        assert row["std_error"] == 0
        if tested:
            assert row["p_value"] == row["q_value"] == 2.0 ** (1 - count)
        else:
            assert np.isnan(row["p_value"]) and np.isnan(row["q_value"])
    with np.errstate(all="raise"):
        assert planted([0.0] * 7).changes()["p_value"][0] == 1
    half = [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]  # squares add up to 1
    assert stats.ttest_1samp(half, 0).pvalue < 2.0**-5 == planted(half).changes()["p_value"][0]
    assert planted([1.0, 2.0]).changes()["std_error"][0] == 0.25
    single = planted([0.5]).changes().iloc[0]
    assert np.isnan(single["std_error"]) and single["difference"] == 0.25


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_p_values_do_not_depend_on_the_unit(scale: float) -> None:
    d = np.array([1.0, -2.0, 4.0, 3.0, 1.0, 2.5, 3.0])
    expected = stats.ttest_1samp(d, 0).pvalue
    assert expected > 2.0**-6
    found = planted((scale * d).tolist()).changes()["p_value"][0]
    assert found == pytest.approx(expected, rel=1e-9)


def test_documents_without_tokens_do_not_count_as_observations() -> None:
    whole, part = planted([1.0, 2.0, 4.0, 3.0, 1.0, 2.0]), planted([1.0, 2.0, 4.0, 3.0, 1.0, 2.0])
    part.counts = torch.cat([part.counts, torch.zeros(3, dtype=torch.float64)])
    for column in ("difference", "std_error", "p_value"):
        assert whole.changes()[column][0] == part.changes()[column][0]
    d = np.array([1.0, 2.0, 4.0, 3.0, 1.0, 2.0])
    expected = np.sqrt(((d - d.mean()) ** 2).sum() * 6 / 5) / 12
    assert whole.changes()["std_error"][0] == pytest.approx(expected)
