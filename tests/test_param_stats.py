"""Steps 1, 2 and 6 on planted changes."""

import json
import math

import pandas as pd
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import analyze_mlp_vs_attn
import plot_param_stats
from model_diffs.core import script, step
from model_diffs.core.errors import BadInput
from model_diffs.diagnostics import param_stats
from model_diffs.diagnostics.param_stats import Settings, compare
from model_diffs.models.checkpoints import Checkpoint

EXACT = Settings(
    torch.device("cpu"), torch.float32, 1e-3, max_iterations=200, seed=42, empirical_threshold=0.99
)


def edited(folder, source, edit):
    """A copy of a model folder whose tensors went through `edit(name, tensor)`."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    changed = {name: edit(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors")
    return folder


def rows_of(a, *bs, settings=EXACT):
    return compare(Checkpoint.open(str(a)), [Checkpoint.open(str(b)) for b in bs], settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_models.save("llama", tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_numbers_equal_lapack_in_every_family(family, tmp_path):
    a = tiny_models.save(family, tmp_path / "a", seed=0)
    b = tiny_models.save(family, tmp_path / "b", seed=1)
    (rows,) = rows_of(a, b)
    stored_a, stored_b = (load_file(f / "model.safetensors") for f in (a, b))
    matrices = {n for n, t in stored_a.items() if t.ndim == 2}
    assert {row["name"] for row in rows} == matrices
    for row in rows:
        W = stored_a[row["name"]].double()
        dW = stored_b[row["name"]].double() - W
        sigma, d_sigma = torch.linalg.svdvals(W), torch.linalg.svdvals(dW)
        assert row["W_fro"] == pytest.approx(float(W.norm()), rel=1e-6)
        assert row["dW_fro"] == pytest.approx(float(dW.norm()), rel=1e-6)
        assert row["W_spectral"] == pytest.approx(float(sigma[0]), rel=1e-5)
        assert row["dW_spectral"] == pytest.approx(float(d_sigma[0]), rel=1e-5)
        assert row["dW_stable_rank"] == pytest.approx(float((d_sigma / d_sigma[0]).square().sum()))
        cosine = torch.nn.functional.cosine_similarity(W.flatten(), (W + dW).flatten(), 0)
        assert row["cosine"] == pytest.approx(float(cosine), abs=1e-6)
        assert row["changed_fraction"] > 0.99


def test_a_model_against_itself_has_no_change(base):
    (rows,) = rows_of(base, base)
    for row in rows:
        assert row["dW_fro"] == row["dW_spectral"] == row["changed_fraction"] == 0
        assert row["dW_stable_rank"] is None
        assert row["cosine"] == pytest.approx(1)
    assert all(row["mean_dW_stable_rank"] is None for row in param_stats.per_layer(rows))
    assert all(row["count_changed"] == 0 for row in param_stats.gather(rows, "component"))


def test_planted_rank_one_edit_has_rank_one(base, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"

    def edit(tensor_name, tensor):
        if tensor_name != name:
            return tensor
        return tensor + torch.outer(torch.randn(tensor.shape[0]), torch.randn(tensor.shape[1]))

    (rows,) = rows_of(base, edited(tmp_path / "b", base, edit))
    (row,) = [row for row in rows if row["dW_fro"] > 0]
    assert row["name"] == name
    assert row["dW_stable_rank"] == pytest.approx(1, abs=1e-5)
    assert row["dW_empirical_rank"] == 1
    layers = {(r["layer"], r["group"]): r for r in param_stats.per_layer(rows)}
    assert layers[1, "mlp"]["count_changed"] == 1
    assert layers[1, "mlp"]["count_mats"] == 3
    assert layers[1, "mlp"]["dW_fro_layer"] == pytest.approx(row["dW_fro"])
    assert layers[1, "attn"]["dW_fro_layer"] == 0


def test_a_scaled_model_changes_by_its_factor_and_keeps_its_rank(base, tmp_path):
    (rows,) = rows_of(base, edited(tmp_path / "b", base, lambda _, tensor: 1.5 * tensor))
    for row in rows:
        assert row["dW_fro_rel"] == pytest.approx(0.5, rel=1e-6)
        assert row["dW_spectral_rel"] == pytest.approx(0.5, rel=1e-5)
        assert row["dW_stable_rank"] == pytest.approx(row["W_stable_rank"], rel=1e-5)
        assert row["cosine"] == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_floor_equals_the_change_of_a_rounded_model(base, tmp_path, dtype):
    (rows,) = rows_of(base, edited(tmp_path / "b", base, lambda _, tensor: tensor.to(dtype)))
    for row in rows:
        assert row["dW_fro"] == pytest.approx(row["rounding_fro"], rel=0.1)


def test_models_compared_together_give_the_same_rows_as_alone(base, tmp_path):
    first, second = (tiny_models.save("llama", tmp_path / str(i), seed=i) for i in (1, 2))
    assert rows_of(base, first, second) == rows_of(base, first) + rows_of(base, second)


def test_nan_is_refused_with_the_name_of_the_tensor(base, tmp_path):
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        bad = edited(
            tmp_path / name, base, lambda n, t, name=name: t * float("nan") if n == name else t
        )
        with pytest.raises(BadInput, match=rf"{name}.*NaN"):
            rows_of(base, bad)


def test_aggregates_by_hand():
    row = {
        "layer": 0, "group": "mlp", "component": "mlp_in", "dW_fro": 3.0, "W_fro": 6.0,
        "dW_spectral": 1.0, "W_spectral": 2.0, "dW_stable_rank": 9.0,
    }  # fmt: skip
    other = {**row, "dW_fro": 4.0, "W_fro": 8.0, "dW_spectral": 2.0, "dW_stable_rank": 4.0}
    still = {**row, "dW_fro": 0.0, "W_fro": 0.0, "dW_spectral": 0.0, "dW_stable_rank": None}
    found = param_stats.aggregate([row, other, still])
    assert found == {
        "dW_fro_layer": 5.0, "W_fro_layer": 10.0, "dW_fro_layer_rel": 0.5, "max_dW_spectral": 2.0,
        "max_W_spectral": 2.0, "max_dW_spectral_rel": 1.0, "mean_dW_stable_rank": 6.5,
        "count_mats": 3, "count_changed": 2,
    }  # fmt: skip


def test_ratio_of_mlp_to_attention_where_one_is_zero():
    assert analyze_mlp_vs_attn.ratio(3.0, 2.0) == 1.5
    assert analyze_mlp_vs_attn.ratio(0.0, 2.0) == 0
    assert analyze_mlp_vs_attn.ratio(3.0, 0.0) == math.inf
    assert analyze_mlp_vs_attn.ratio(0.0, 0.0) is None


def run(name, *words):
    script.execute(step.load_script(step.SCRIPTS / f"{name}.py"), [*map(str, words)])


def test_scripts_from_weights_to_figures(base, tmp_path, capsys):
    """Only the MLP of block 1 changes: tables, figures and ratios say so."""
    changed = edited(tmp_path / "changed", base, lambda n, t: t * 1.1 if "layers.1.mlp" in n else t)
    names = ("--model-a", base, "--model-b", changed, "--outroot", tmp_path / "out")
    run("collect_param_stats", *names, "--empirical-rank")
    run("plot_param_stats", *names)
    run("analyze_mlp_vs_attn", *names)
    folder = tmp_path / "out" / "base__to__changed"
    columns = list(pd.read_csv(folder / "param_stats/per_matrix.csv"))
    assert columns[11:16] == [
        *("dW_stable_rank", "W_stable_rank", "dW_empirical_rank", "W_empirical_rank", "component"),
    ]
    record = json.loads((folder / "param_stats/run.json").read_text())
    assert record["matrices_changed"] == 3
    summary = pd.read_csv(folder / "mlp_attn_analysis/mlp_attn_summary.csv")
    assert summary["ratio_mlp_attn"].isna().tolist() == [True, False, True]
    assert summary["ratio_mlp_attn"][1] == math.inf
    figures = {path.name for path in (folder / "param_plots").glob("*.png")}
    assert {"layer_locality_attn.png", "stable_rank_mlp.png", "rank_comparison_mlp.png"} <= figures
    each = pd.read_csv(folder / "param_stats/per_matrix.csv")
    of_mlp = each[(each["layer"] == 1) & (each["group"] == "mlp")]
    layers = pd.read_csv(folder / "param_stats/per_layer.csv")
    ranks = plot_param_stats.with_bases_rank(layers, folder / "param_stats/per_matrix.csv")
    drawn = ranks.set_index(["layer", "group"])["mean_W_stable_rank"]
    assert drawn[1, "mlp"] == pytest.approx(of_mlp["W_stable_rank"].mean())
    assert drawn.drop((1, "mlp")).isna().all()
    capsys.readouterr()
    run("collect_param_stats", *names, "--empirical-rank")
    assert "complete, skipped" in capsys.readouterr().out


def test_a_damaged_model_gives_one_line_and_no_folder(base, tmp_path):
    broken = edited(tmp_path / "broken", base, lambda _, tensor: tensor)
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=r"model\.safetensors is truncated") as caught:
        run("collect_param_stats", "--model-a", base, "--model-b", broken, "--outroot", out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_table_without_blocks_is_refused(tmp_path):
    row = {"layer": -1, "group": "other", "dW_fro": 1.0, "W_fro": 2.0, "dW_stable_rank": 1.0}
    pd.DataFrame([row]).to_csv(tmp_path / "per_matrix.csv", index=False)
    words = ("--per-matrix-csv", tmp_path / "per_matrix.csv", "--outdir", tmp_path / "out")
    with pytest.raises(BadInput, match="no matrix of a block"):
        run("analyze_mlp_vs_attn", *words)
    assert not (tmp_path / "out").exists()


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────


def test_rounding_is_a_twelfth_of_the_squared_spacing():
    # bfloat16 has 8 bits: numbers from 1 to 2 lie 2⁻⁷ apart, from 4 to 8 four times as far.
    for values, squared in (
        ([1.0], 2**-14),
        ([1.9921875], 2**-14),
        ([-6.0], 2**-10),
        ([1.0, -6.0, 5.0], 2**-14 + 2 * 2**-10),
        ([0.5], 2**-16),
    ):
        found = param_stats.squared_rounding(torch.tensor(values, dtype=torch.bfloat16))
        assert found == pytest.approx(squared / 12, rel=1e-12, abs=0)
    # Below the smallest normal number, 2⁻¹⁴ in fp16, the spacing is 2⁻²⁴ everywhere.
    for tiny in (0.0, 2.0**-24, 2.0**-20, 2.0**-14):
        found = param_stats.squared_rounding(torch.tensor([tiny], dtype=torch.float16))
        assert found == pytest.approx(2.0**-48 / 12, rel=1e-12, abs=0)
    found = param_stats.squared_rounding(torch.tensor([2.0**-13], dtype=torch.float16))
    assert found == pytest.approx(2.0**-46 / 12, rel=1e-12, abs=0)
    # A square that fp32 cannot hold.
    found = param_stats.squared_rounding(torch.tensor([2.0**-80], dtype=torch.bfloat16))
    assert found == pytest.approx(2.0**-174 / 12, rel=1e-12, abs=0)


def test_entries_that_change_are_counted_in_chunks(monkeypatch):
    from model_diffs.models import checkpoints

    monkeypatch.setattr(checkpoints, "_CHUNK", 8)  # two rows at a time
    a = torch.arange(20.0).reshape(5, 4)
    b = a.clone()
    b[0, 1], b[4, 3], b[4, 0] = 3.0, -1.0, 0.5
    dW, found = param_stats.difference(a, b)
    assert torch.equal(dW, b - a) and dW.dtype == torch.float32
    assert found["changed_fraction"] == 3 / 20
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    assert found["cosine"] == pytest.approx(cosine, rel=1e-6)
    squared = param_stats.squared_rounding(b)
    assert found["rounding_fro"] == pytest.approx(math.sqrt(squared))
    assert param_stats.difference(a, -a)[1]["cosine"] == pytest.approx(-1)
    for one, other in ((a, torch.zeros_like(a)), (torch.zeros_like(a), a)):
        assert param_stats.difference(one, other)[1]["cosine"] is None
    # Rounding would put the cosine of some parallel vectors beyond one.
    for vector in torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(0)):
        assert 1 - 1e-6 < param_stats.difference(vector, 3 * vector)[1]["cosine"] <= 1
        assert -1 <= param_stats.difference(vector, -3 * vector)[1]["cosine"] < -1 + 1e-6


def test_a_difference_is_taken_in_fp32_of_what_is_stored():
    a, b = (torch.tensor([[value]], dtype=torch.bfloat16) for value in (1.0, 1.0078125))
    assert param_stats.difference(a, b)[0].item() == 0.0078125


def test_norms_and_ranks_of_a_matrix_by_hand():
    W = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0]))
    found = param_stats.spectrum(W, "W", EXACT)
    expected = {"fro": math.sqrt(21), "spectral": 4, "error": 0, "stable_rank": 21 / 16}
    assert found == pytest.approx({**expected, "empirical_rank": 3})
    without = EXACT._replace(empirical_threshold=None)
    assert param_stats.spectrum(W, "W", without) == pytest.approx(expected)
    half = EXACT._replace(empirical_threshold=0.9)
    assert param_stats.spectrum(W, "W", half)["empirical_rank"] == 2
    # The norm is of what is stored, the spectral norm is computed in the dtype that is set.
    rounded = EXACT._replace(dtype=torch.bfloat16)
    found = param_stats.spectrum(torch.diag(torch.tensor([1.00390625, 0.5])), "W", rounded)
    assert found["spectral"] == 1 and found["fro"] == math.hypot(1.00390625, 0.5)
    assert found["error"] == 0.00390625, "what rounding took from the largest"


def test_error_of_a_rounded_matrix_covers_its_rounding(recwarn):
    W = torch.randn(300, 320, generator=torch.Generator().manual_seed(0))
    found = param_stats.spectrum(W, "W", EXACT._replace(dtype=torch.bfloat16))
    true = float(torch.linalg.matrix_norm(W.double(), 2))
    assert abs(found["spectral"] - true) <= found["error"] * found["spectral"]
    exact = param_stats.spectrum(W.bfloat16().float(), "W", EXACT._replace(dtype=torch.bfloat16))
    assert exact["spectral"] == found["spectral"]
    assert exact["error"] <= 1e-3 < found["error"] < 3e-3
    assert not recwarn


def test_settings_decide_how_far_the_largest_singular_value_is_iterated():
    W = torch.randn(300, 320, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="the label: after 2 iterations"):
        rough = param_stats.spectrum(W, "the label", EXACT._replace(max_iterations=2))
    fine = param_stats.spectrum(W, "the label", EXACT._replace(tol=1e-4))
    assert rough["error"] > 1e-3 > 1e-4 >= fine["error"] > 0
    other = param_stats.spectrum(W, "the label", EXACT._replace(tol=1e-4, seed=1))
    assert other["spectral"] != fine["spectral"]
    assert other["spectral"] == pytest.approx(fine["spectral"], rel=1e-5)


def test_a_row_has_every_number_in_its_column():
    from model_diffs.models.architectures import Matrix

    matrix = Matrix("name", "tensor", 3, "mlp", "mlp_in", (5, 7))
    W = {"fro": 8.0, "spectral": 4.0, "stable_rank": 4.0, "empirical_rank": 6, "error": 0.1}
    dW = {"fro": 2.0, "spectral": 1.0, "stable_rank": 3.0, "empirical_rank": 2, "error": 0.2}
    row = param_stats.matrix_row(matrix, W, dW, {"cosine": 0.5})
    assert row == {
        "name": "name", "layer": 3, "group": "mlp", "shape0": 5, "shape1": 7,
        "dW_fro": 2.0, "W_fro": 8.0, "dW_fro_rel": 0.25, "dW_spectral": 1.0, "W_spectral": 4.0,
        "dW_spectral_rel": 0.25, "dW_stable_rank": 3.0, "W_stable_rank": 4.0,
        "dW_empirical_rank": 2, "W_empirical_rank": 6, "component": "mlp_in", "cosine": 0.5,
        "dW_spectral_error": 0.2, "W_spectral_error": 0.1,
    }  # fmt: skip
    zero = param_stats.matrix_row(matrix, {**W, "fro": 0.0, "spectral": 0.0}, dW, {})
    assert zero["dW_fro_rel"] is zero["dW_spectral_rel"] is None


def test_rows_are_gathered_in_order_and_layers_sorted():
    row = {
        "group": "mlp", "component": "mlp_in", "dW_fro": 3.0, "W_fro": 6.0, "dW_spectral": 1.0,
        "W_spectral": 2.0, "dW_stable_rank": 9.0, "dW_empirical_rank": 4,
    }  # fmt: skip
    rows = [{**row, "layer": 2}, {**row, "layer": 0}, {**row, "layer": 0, "group": "attn"}]
    rows += [{**row, "layer": 0, "dW_fro": 4.0, "dW_empirical_rank": 8}]
    found = param_stats.gather(rows, "group")
    assert [(one["group"], one["count_mats"]) for one in found] == [("mlp", 3), ("attn", 1)]
    layers = param_stats.per_layer(rows)
    keys = [(one["layer"], one["group"], one["count_mats"]) for one in layers]
    assert keys == [(0, "attn", 1), (0, "mlp", 2), (2, "mlp", 1)]
    assert layers[1]["dW_fro_layer"] == 5 and layers[1]["mean_dW_empirical_rank"] == 6
