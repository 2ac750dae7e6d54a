"""From means to what is saved: worked examples, names, and reading back."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model_diffs.core.errors import BadInput
from model_diffs.importance import options, running, saved
from model_diffs.importance.saved import load_results, normalise, raise_to, variants

# ── worked examples ───────────────────────────────────────────────────────────────────────────────


def test_normalisation_of_worked_example() -> None:
    values = np.array([0.5, -0.3, 0.2])
    np.testing.assert_allclose(normalise(values, "sum_abs"), [1.5, -0.9, 0.6])
    np.testing.assert_allclose(normalise(values, "sum"), [3.75, -2.25, 1.5])
    np.testing.assert_array_equal(normalise(values, "none"), values)


def test_power_of_worked_examples() -> None:
    np.testing.assert_allclose(raise_to(np.array([10, 5, 1, -8.0]), 2), [100, 25, 1, -64])
    found = raise_to(np.array([10, 5, 1, -8.0]), 0.5)
    np.testing.assert_allclose(found, [3.16, 2.24, 1.0, -2.83], atol=5e-3)
    np.testing.assert_allclose(raise_to(np.array([10, 5, 1, 8.0]), 2), [100, 25, 1, 64])


def test_power_comes_before_normalisation() -> None:
    both = options.Measurement(aggregation_mode="both", normalize_gradients="both")
    found, refused = variants({7: np.array([[3.0, -1.0], [3.0, 1.0]])}, both, 2.0)
    assert not refused
    expected = {
        "layer_7_mean_norm_sum": [9 / 4, -1 / 4],
        "layer_7_mean_norm_sum_abs": [9 / 5, -1 / 5],
        "layer_7_mean_abs_norm_sum": [9 / 5, 1 / 5],
        "layer_7_mean_abs_norm_sum_abs": [9 / 5, 1 / 5],
    }
    assert list(found) == list(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-6)


def test_sums_too_close_to_zero_are_bad_input() -> None:
    for cancelling in ([1.0, -1.0], [1.0, -0.9999]):
        with pytest.raises(BadInput, match=r"layer 3: .* too close to 0"):
            normalise(np.array(cancelling), "sum", "layer 3: the values")
    normalise(np.array([1.0, -0.999]), "sum")
    normalise(np.array([1.0, -1.0]), "sum_abs")
    normalise(np.array([1e-30, -2e-30]), "sum")  # small, but not beside their own size
    for how in ("sum", "sum_abs"):
        with pytest.raises(BadInput, match="all zero"):
            normalise(np.zeros(3), how)
    with pytest.raises(BadInput, match="too large"):
        raise_to(np.array([1e200]), 2.0)


# ── the command line ──────────────────────────────────────────────────────────────────────────────


def test_layers_are_ranges_lists_or_both() -> None:
    assert options.layer_list("0-3") == (0, 1, 2, 3)
    assert options.layer_list("10, 0,5") == (0, 5, 10)
    assert options.layer_list("0-2,2,23") == (0, 1, 2, 23)
    assert options.layer_list("all") is None
    assert saved.layers_label((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    for wrong in ("3-1", "a", "", "1-", "-1", "1,,2"):
        with pytest.raises(ValueError, match=r"layers|backwards"):
            options.layer_list(wrong)


def test_layers_beyond_the_model_are_bad_input() -> None:
    four = SimpleNamespace(model="m", config={"num_hidden_layers": 4})
    assert running.layers_of(options.Options(), four) == (0, 1, 2, 3)
    assert running.layers_of(options.Options(layers=(0, 3)), four) == (0, 3)
    with pytest.raises(BadInput, match="layers 0-3, and --layers asks for 4"):
        running.layers_of(options.Options(layers=(0, 4)), four)


# ── reading back ──────────────────────────────────────────────────────────────────────────────────


def test_unreadable_results_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_results(tmp_path / "none.npz")
    with pytest.raises(BadInput, match=r"consolidated_results\.npz: no such file"):
        load_results(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="not a consolidated result"):
        load_results(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", metadata=np.array({"a": 1}, dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="not a consolidated result"):
        load_results(tmp_path / "y.npz")
    saved.write_consolidated(tmp_path / "z.npz", {"layer_0_mean": np.ones(2)}, {})
    assert not list(tmp_path.glob(".*"))
