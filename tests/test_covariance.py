"""Spectra of hidden states: planted shapes, SciPy, and a loop over tokens."""

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pytest
import tiny_study
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, wasserstein_distance

from model_diffs.activations import collecting
from model_diffs.core.errors import BadInput
from model_diffs.diagnostics import covariance
from model_diffs.stats.covariances import covariance_spectrum

SCRIPT = "activation_covariance_analysis.py"


def falling(seed: int, d: int = 40) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).exponential(size=d) ** 3)[::-1]


# ── what a spectrum says ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("d", [7, 300])
def test_isotropic_spectrum_has_full_rank_and_entropy(d: int) -> None:
    spectrum = np.full(d, 3.7)
    assert covariance.entropy(spectrum) == pytest.approx(np.log(d))
    assert covariance.participation_ratio(spectrum) == pytest.approx(d)
    assert covariance.effective_rank(spectrum) == int(np.ceil(0.99 * d))


def test_rank_one_spectrum_has_one_direction() -> None:
    spectrum = np.array([5.0, 0, 0, 0])
    assert covariance.effective_rank(spectrum) == 1
    assert covariance.entropy(spectrum) == 0
    assert covariance.participation_ratio(spectrum) == pytest.approx(1)
    assert covariance.top_share(spectrum) == 1


def test_effective_rank_counts_to_99_percent_and_no_further() -> None:
    assert covariance.effective_rank(np.array([98.0, 1, 1])) == 2
    assert covariance.effective_rank(np.array([98.0, 0.9, 0.6, 0.5])) == 3


def test_measures_of_a_zero_spectrum_are_undefined() -> None:
    point = np.zeros(4)
    for measure in (covariance.effective_rank, covariance.entropy, covariance.top_share):
        assert measure(point) is None
    assert covariance.participation_ratio(point) is None
    assert covariance.wasserstein_normalised(point, falling(0, 4)) is None


@settings(deadline=None)  # other work may slow an example down
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_distances_equal_scipy(first: int, second: int) -> None:
    a, b = falling(first), falling(second)
    assert covariance.wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b), abs=1e-12)
    scaled = wasserstein_distance(a / a.mean(), b / b.mean())
    assert covariance.wasserstein_normalised(a, b) == pytest.approx(scaled, abs=1e-12)
    assert covariance.entropy(a) == pytest.approx(entropy(a), abs=1e-12)


def test_normalised_distance_ignores_scale() -> None:
    a = falling(0)
    assert covariance.wasserstein(a, 4 * a) == pytest.approx(3 * a.mean())
    assert covariance.wasserstein_normalised(a, 4 * a) == pytest.approx(0, abs=1e-12)


def test_top_ten_changes_are_of_the_share_or_of_the_eigenvalues() -> None:
    a = np.array([4.0] * 10 + [1.0] * 40)
    turned = np.array([8.0, 0.0] * 5 + [1.0] * 40)
    assert covariance.top_share_change(a, 4 * a) == 0
    assert covariance.top_relative_change(a, 4 * a) == pytest.approx(3)
    assert covariance.top_relative_change(a, turned) == pytest.approx(1), "up and down both count"
    assert covariance.top_share_change(a, np.append(a[:10], np.zeros(40))) == pytest.approx(0.5)
    assert covariance.top_relative_change(np.zeros(50), a) is None


# ── eigenvalues ───────────────────────────────────────────────────────────────────────────────────


def eigenvalues(matrix: np.ndarray, mean_square: float = 0.0) -> np.ndarray:
    return covariance_spectrum(torch.from_numpy(matrix), "state 3", mean_square)


def test_eigenvalues_equal_squared_singular_values() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(30, 8)) * np.arange(1, 9)
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(eigenvalues(np.cov(x.T, bias=True)), singular**2 / 30, rtol=1e-10)


def test_clips_rounding_below_zero_and_refuses_negative_eigenvalues() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]

    def matrix(smallest: float) -> np.ndarray:
        return turn @ np.diag([4.0, 1.0, smallest]) @ turn.T

    np.testing.assert_allclose(eigenvalues(matrix(-1e-6)), [4, 1, 0], atol=1e-12)
    assert eigenvalues(matrix(-1e-6))[-1] == 0
    with pytest.raises(ValueError, match=r"state 3.*-0\.001.*which no covariance"):
        eigenvalues(matrix(-1e-3))
    # What counts as rounding is relative to the largest eigenvalue.
    assert eigenvalues(np.diag([100.0, 1.0, -5e-4]))[-1] == 0
    with pytest.raises(ValueError, match="which no covariance"):
        eigenvalues(np.diag([1e-3, 1e-4, -1e-7]))
    assert (eigenvalues(np.zeros((3, 3))) == 0).all()
    # One token over and over: nothing but rounding of its state, here of length 1.
    assert (eigenvalues(np.diag([1e-15, -3e-15, 0.0]), 1.0) <= 1e-15).all()


class Spectra(NamedTuple):
    """Saved statistics."""

    spectrum: np.ndarray

    def read(self, name: str, *_: str) -> np.ndarray:
        assert name == "spectrum"
        return self.spectrum


@pytest.mark.parametrize("damage", [np.nan, -1.0])
def test_saved_spectra_are_read_and_damage_is_named(damage: float) -> None:
    states = np.array([[2.0, 1.0], [3.0, 0.5]])
    np.testing.assert_array_equal(
        covariance.spectra(cast(Any, Spectra(states)), "forget_a"), states
    )
    states[1, 1] = damage
    with pytest.raises(BadInput, match="spectrum of forget_a"):
        covariance.spectra(cast(Any, Spectra(states)), "forget_a")


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def test_selectivity_is_forget_over_retain_and_empty_for_an_unchanged_retain_set() -> None:
    a = falling(0)[None]
    base = {"forget_a": a, "retain_a": a}
    row = covariance.metric_table(base | {"forget_b": 3 * a, "retain_b": 2 * a}).iloc[0]
    assert row["selectivity_ratio"] == pytest.approx(2)
    assert row["forget_trace_b"] == pytest.approx(3 * row["forget_trace_a"])
    row = covariance.metric_table(base | {"forget_b": 3 * a, "retain_b": a}).iloc[0]
    assert np.isnan(row["selectivity_ratio"]) and row["retain_wasserstein"] == 0


def test_every_column_of_a_row_by_hand() -> None:
    a, b = np.array([[3.0, 1.0]]), np.array([[2.0, 2.0]])
    table = covariance.metric_table({"forget_a": a, "forget_b": b, "retain_a": b, "retain_b": a})
    row = table.iloc[0]
    for forget, retain in (("a", "b"), ("b", "a")):
        for name, value in {
            "participation": {"a": 1.6, "b": 2.0},
            "eff_rank": {"a": 2, "b": 2},
            "trace": {"a": 4, "b": 4},
            "top10_share": {"a": 1, "b": 1},
        }.items():
            assert row[f"forget_{name}_{forget}"] == pytest.approx(value[forget])
            assert row[f"retain_{name}_{retain}"] == pytest.approx(value[forget])
    for name, forget, retain in (
        ("wasserstein", 1, 1),
        ("wasserstein_normalised", 0.5, 0.5),
        ("top10_change", 0, 0),
        ("top10_relative_change", 0.5, 0.5),
    ):
        assert row[f"forget_{name}"] == pytest.approx(forget)
        assert row[f"retain_{name}"] == pytest.approx(retain)
    assert row["selectivity_ratio"] == row["selectivity_ratio_normalised"] == pytest.approx(1)


def test_a_table_of_zero_spectra_has_empty_cells_in_columns_of_numbers() -> None:
    zero = np.zeros((2, 3))
    table = covariance.metric_table(
        {f"{split}_{side}": zero for split in covariance.SPLITS for side in "ab"}
    )
    for name in ("wasserstein_normalised", "top10_change", "top10_relative_change"):
        assert table[f"forget_{name}"].dtype == float and table[f"forget_{name}"].isna().all()
    assert (table["forget_wasserstein"] == 0).all()


def test_top_ten_of_more_and_their_changes_by_hand() -> None:
    a, b = np.arange(12.0, 0.0, -1.0), np.arange(24.0, 0.0, -2.0)
    b[0] += 1
    assert covariance.top_share(a) == 75 / 78
    assert covariance.top_share_change(a, b) == pytest.approx(151 / 157 - 75 / 78)
    assert covariance.top_relative_change(a, b) == pytest.approx(76 / 75)
    assert covariance.top_relative_change(b, a) == pytest.approx(76 / 151)
    zero = np.zeros(12)
    assert covariance.top_share_change(zero, a) is covariance.top_share_change(a, zero) is None
    assert covariance.top_relative_change(zero, a) is None
    assert covariance.top_relative_change(a, zero) == 1
    assert covariance.wasserstein_normalised(zero, a) is None
    assert covariance.effective_rank(np.array([99.0, 1.0])) == 1, "99 % exactly"


def test_summary_by_hand() -> None:
    a = np.stack([falling(i, 6) for i in range(3)])
    still = a.copy()
    still[0] = 0
    moved = a * np.array([[1.0], [1.0], [2.0]])
    moved[1, 0] *= 3
    spectra = {"forget_a": a, "retain_a": still, "forget_b": moved, "retain_b": still}
    table = covariance.metric_table(spectra)
    found = covariance.summary(table)
    assert found["states"] == found["states_without_selectivity"] == 3
    means = found["mean_over_states"]
    assert "layer" not in means and means["selectivity_ratio"] is None
    ranks = [covariance.effective_rank(spectrum) for spectrum in a]
    assert means["forget_eff_rank_a"] == pytest.approx(np.mean(np.array(ranks, float)))
    assert means["forget_trace_b"] == pytest.approx(moved.sum(1).mean())
    # Undefined for the first state, a zero spectrum.
    entropies = [covariance.entropy(spectrum) for spectrum in still[1:]]
    assert means["retain_entropy_a"] == pytest.approx(np.mean(entropies))
    largest = found["largest_normalised_forget_change"]
    expected = covariance.wasserstein_normalised(a[1], moved[1])
    assert largest == {"layer": 1, "forget": pytest.approx(expected), "retain": 0.0}
    first = {**spectra, "forget_b": a * np.array([[1.0], [1.0], [1.0]])}
    first["forget_b"][0, 0] *= 2
    largest = covariance.summary(covariance.metric_table(first))["largest_normalised_forget_change"]
    assert largest["layer"] == 0 and largest["retain"] is None
    # Of a state with a zero spectrum the change is not defined: it is not the largest.
    second = {**first, "forget_a": a.copy(), "forget_b": a.copy()}
    second["forget_a"][0] = 0
    second["forget_b"][1, 0] *= 1.1
    largest = covariance.summary(covariance.metric_table(second))[
        "largest_normalised_forget_change"
    ]
    assert largest["layer"] == 1 and largest["forget"] < 0.2


# ── the script ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    made = tiny_study.make(tmp_path_factory.mktemp("covariance"), "llama")
    made.compare(SCRIPT)
    return made


def folder_of(study: tiny_study.Study) -> Path:
    return study.root / "outputs/base__to__base__rmu/activation_covariance"


def test_the_table_equals_a_loop_over_tokens(study: tiny_study.Study) -> None:
    """transformers' own states, unpadded; the BOS that Llama puts in front does not count."""
    table = pd.read_csv(folder_of(study) / "covariance_metrics.csv")
    with np.load(folder_of(study) / "spectra.npz", allow_pickle=False) as saved:
        spectra = dict(saved)
    assert sorted(spectra) == ["forget_a", "forget_b", "retain_a", "retain_b"]
    expected: dict[str, np.ndarray] = {}
    for side, model in (("a", study.model_a), ("b", study.model_b)):
        for split in covariance.SPLITS:
            tokens = np.concatenate([h[:, 1:] for h in tiny_study.states(model, split)], axis=1)
            values = np.stack([np.linalg.eigvalsh(np.cov(h.T, bias=True))[::-1] for h in tokens])
            expected[f"{split}_{side}"] = values
            found = spectra[f"{split}_{side}"]
            assert np.abs(found - values).max(1) == pytest.approx(0, abs=1e-5 * values.max())
            entropies = [entropy(v) for v in values]
            np.testing.assert_allclose(table[f"{split}_entropy_{side}"], entropies, rtol=1e-5)
            ranks = [np.searchsorted(np.cumsum(v) / v.sum(), 0.99) + 1 for v in values]
            assert table[f"{split}_eff_rank_{side}"].tolist() == ranks
    for split in covariance.SPLITS:
        pairs = list(zip(expected[f"{split}_a"], expected[f"{split}_b"], strict=True))
        distances = [wasserstein_distance(a, b) for a, b in pairs]
        np.testing.assert_allclose(table[f"{split}_wasserstein"], distances, rtol=1e-4)
        change = [b[:10].sum() / b.sum() - a[:10].sum() / a.sum() for a, b in pairs]
        np.testing.assert_allclose(table[f"{split}_top10_change"], change, atol=1e-5)
        shares = [table[f"{split}_top10_share_{side}"] for side in "ab"]
        np.testing.assert_allclose(table[f"{split}_top10_change"], shares[1] - shares[0], atol=1e-9)
        change = [np.abs(b[:10] - a[:10]).mean() / a[:10].mean() for a, b in pairs]
        np.testing.assert_allclose(table[f"{split}_top10_relative_change"], change, atol=1e-5)
        last = []
        for model in (study.model_a, study.model_b):
            stream = tiny_study.states(model, split, residual=True)
            tokens = np.concatenate([h[-1, 1:] for h in stream])
            values = np.linalg.eigvalsh(np.cov(tokens.T, bias=True))
            last.append(values / values.mean())
        before = table[f"{split}_wasserstein_normalised_residual"]
        after = table[f"{split}_wasserstein_normalised"]
        assert before.iloc[-1] == pytest.approx(wasserstein_distance(*last), rel=1e-4)
        assert before[:-1].tolist() == after[:-1].tolist() and before.iloc[-1] != after.iloc[-1]
    ratio = table["forget_wasserstein"] / table["retain_wasserstein"]
    np.testing.assert_allclose(table["selectivity_ratio"], ratio, rtol=1e-12)


def test_columns_are_in_the_documented_order(study: tiny_study.Study) -> None:
    table = pd.read_csv(folder_of(study) / "covariance_metrics.csv")
    sides = [
        f"{s}_{m}_{x}" for m in ("eff_rank", "entropy") for s in covariance.SPLITS for x in "ab"
    ]
    others = ["forget_wasserstein", "retain_wasserstein"]
    others += ["forget_top10_change", "retain_top10_change", "selectivity_ratio"]
    others += ["forget_wasserstein_normalised", "retain_wasserstein_normalised"]
    assert table.columns[: 1 + len(sides) + len(others)].tolist() == ["layer", *sides, *others]
    summary = json.loads((folder_of(study) / "summary.json").read_text())
    assert summary["states"] == len(table) == 4
    mean = summary["mean_over_states"]["forget_wasserstein_normalised"]
    assert mean == pytest.approx(table["forget_wasserstein_normalised_residual"].mean())


def test_a_model_against_itself_has_no_change(study: tiny_study.Study) -> None:
    study.compare(SCRIPT, b=study.model_a)
    table = pd.read_csv(
        study.root / "outputs/base__to__base/activation_covariance/covariance_metrics.csv"
    )
    moved = [c for c in table if "wasserstein" in c or c.endswith("_change")]
    assert len(moved) == 10 and (table[moved] == 0).all(axis=None)
    assert table[["selectivity_ratio", "selectivity_ratio_normalised"]].isna().all(axis=None)


def test_repeated_runs_are_equal_and_make_no_pass(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_pass(*_: object) -> None:
        raise AssertionError("a forward pass, though all statistics are saved")

    monkeypatch.setattr(collecting, "collect", no_pass)
    study.compare(SCRIPT)
    assert "complete, skipped" in capsys.readouterr().out
    names = ["covariance_metrics.csv", "spectra.npz", "covariance_analysis.png", "summary.json"]
    before = {name: (folder_of(study) / name).read_bytes() for name in names}
    (folder_of(study) / "run.json").write_text("")  # not complete
    study.compare(SCRIPT)
    assert before == {name: (folder_of(study) / name).read_bytes() for name in names}
