"""Both importance scripts: their command lines, and a run of each from end to end."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import field_saes
import numpy as np
import pytest
import tiny_models
import torch

from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.script import run_script
from model_diffs.dictionaries import sae_files, sae_releases
from model_diffs.dictionaries.sae import Sae
from model_diffs.importance.saved import load_results

SCRIPTS = Path(__file__).parent.parent / "important_acts_ftrs"
TEXTS = ["The river at Ava is wide.", "No.", "Seven weavers kept a ledger.", "Bread and salt."]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


# ── the command line ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["layer_gradient_analysis", "sae_gradient_analysis"])
def test_flags_take_dashes_and_underscores_and_the_older_names(name: str) -> None:
    kind = script(name).Options
    required = ["--sae", "some_folder/x-y"] if name.startswith("sae") else []
    given = {
        "model_name": "a_b/c-d", "num_samples": "7", "batch_size": "3", "max_length": "9",
        "aggregate_by": "gradients", "aggregation_mode": "both", "normalize_gradients": "both",
        "save_consolidated": "some_name-x.npz", "skip_first": "1",
    }  # fmt: skip
    canonical = {"model_name": "model", "num_samples": "max_samples"}
    switches = ("save_outputs", "keep_bos", "trust_remote_code")
    for change in (
        lambda flag: flag,
        lambda flag: flag.replace("_", "-"),
        lambda flag: canonical.get(flag, flag).replace("_", "-"),
    ):
        words = [word for key, value in given.items() for word in (f"--{change(key)}", value)]
        found = parse(kind, [*words, *(f"--{change(s)}" for s in switches), *required], None)
        for key, value in given.items():
            assert str(getattr(found, canonical.get(key, key))) == value
        assert all(getattr(found, switch) for switch in switches)
        joined = [f"--{change(key)}={value}" for key, value in given.items()]
        assert parse(kind, [*joined, *required], None).save_consolidated == "some_name-x.npz"


def test_defaults_are_those_of_the_documents() -> None:
    found = parse(script("layer_gradient_analysis").Options, [], None)
    expected = {
        "model": "Qwen/Qwen2.5-0.5B", "max_samples": 500, "batch_size": 4, "max_length": 128,
        "layers": None, "aggregate_by": "values", "aggregation_mode": "mean_abs", "power": None,
        "normalize_gradients": "sum_abs", "save_outputs": False, "save_consolidated": None,
        "site": "auto", "dtype": "auto",
    }  # fmt: skip
    assert {key: getattr(found, key) for key in expected} == expected
    assert found.read_at == "mlp_out"
    assert parse(script("sae_gradient_analysis").Options, [], None).sae == ""


def test_scripts_share_all_but_their_dimensions() -> None:
    lines = [len((SCRIPTS / f"{n}_gradient_analysis.py").read_text().splitlines())
             for n in ("layer", "sae")]  # fmt: skip
    assert sum(lines) < 300


# ── end to end ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an SAE of two of its layers, texts."""
    folder = tmp_path_factory.mktemp("importance")
    tiny_models.save("llama", folder / "tiny", seed=3)
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    torch.manual_seed(0)
    for layer in (0, 2):
        W = torch.randn(96, tiny_models.HIDDEN)
        sae = Sae(W, torch.zeros(96), W.clone(), torch.zeros(tiny_models.HIDDEN), "topk", True, 4)
        sae_files.write_sparsify(folder / "sae" / f"layers.{layer}.mlp", sae, 3)
    return folder


def run(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of a script in this process."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as left:
        run_script(script(name).main)
    return int(left.value.code or 0)


def given(place: Path, *more: str) -> list[str]:
    words = {"model-name": place / "tiny", "dataset": place / "texts.txt", "device": "cpu"}
    return [w for key, value in words.items() for w in (f"--{key}", str(value))] + [*more]


MODES = {"mean": ["mean"], "mean_abs": ["mean_abs"], "both": ["mean", "mean_abs"]}
NORMS = {"none": [""], "sum": [""], "sum_abs": [""], "both": ["_norm_sum", "_norm_sum_abs"]}


@pytest.mark.parametrize("normalisation", NORMS)
@pytest.mark.parametrize("mode", MODES)
def test_every_combination_writes_its_files(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, normalisation: str
) -> None:
    monkeypatch.setattr("model_diffs.importance.running.figures", lambda *_: ())
    words = given(place, "--save_outputs", "--outroot", str(tmp_path), "--layers", "0,2")
    words += ["--aggregation-mode", mode, "--normalize-gradients", normalisation]
    assert run("layer_gradient_analysis", [*words, "--power", "0.5,2"], monkeypatch) == 0
    folders = sorted((tmp_path / "importance").iterdir())
    stem = "layer_activations_model_tiny_num_samples_500_batch_size_4_layers_0,2_power_"
    assert [f.name[: len(stem) + 3] for f in folders] == [stem + "0.5", stem + "2.0"]
    keys = [f"layer_{i}_{m}{n}" for i in (0, 2) for m in MODES[mode] for n in NORMS[normalisation]]
    for folder, power in zip(folders, (0.5, 2.0), strict=True):
        assert {f.name for f in folder.glob("*.npy")} == {f"{k}_gradients.npy" for k in keys}
        found = load_results(folder)
        assert set(found["data"]) == set(keys)
        assert found["metadata"]["power"] == power
        for key, values in found["data"].items():
            exact = values.astype(np.float64)
            if normalisation == "sum" or key.endswith("norm_sum"):
                assert exact.sum() == pytest.approx(len(exact), rel=1e-4)
            elif normalisation != "none":
                assert np.abs(exact).sum() == pytest.approx(len(exact), rel=1e-5)


@pytest.mark.study
def test_arrays_that_cannot_be_normalised_leave_the_others_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """LayerNorm ignores a shift of all dimensions, so signed gradients add up to nothing."""
    tiny_models.save("gpt_neox", tmp_path / "neox")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = ["--model_name", str(tmp_path / "neox"), "--dataset", str(tmp_path / "texts.txt")]
    words += ["--aggregate_by", "gradients", "--save_outputs", "--outroot", str(tmp_path)]
    words += ["--layers", "1", "--aggregation_mode", "both", "--normalize_gradients"]
    assert run("layer_gradient_analysis", [*words, "both"], monkeypatch) == 2
    assert "layer 1, mean: " in (said := capfd.readouterr().err) and "too close to 0" in said
    (folder,) = (tmp_path / "importance").iterdir()
    kept = {
        "layer_1_mean_norm_sum_abs",
        "layer_1_mean_abs_norm_sum",
        "layer_1_mean_abs_norm_sum_abs",
    }
    assert set(load_results(folder)["data"]) == kept
    assert {f.name for f in folder.glob("*_scatter.png")} >= {f"{key}_scatter.png" for key in kept}
    shutil.rmtree(folder)
    words[words.index("both")] = "mean"
    assert run("layer_gradient_analysis", [*words, "sum"], monkeypatch) == 2
    assert not list((tmp_path / "importance").iterdir())


@pytest.mark.study
def test_moved_folder_and_its_npz_load_alike(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = given(place, "--save_outputs", "--outroot", str(tmp_path), "--aggregation_mode", "both")
    apart = tmp_path / "apart.npz"
    words += ["--aggregate_by", "gradients", "--save-consolidated", str(apart)]
    assert run("sae_gradient_analysis", [*words, "--sae", str(place / "sae")], monkeypatch) == 0
    (folder,) = (tmp_path / "importance").iterdir()
    assert folder.name.startswith(
        "sae_features_model_tiny_num_samples_500_batch_size_4_layers_0,2_2"
    )
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    both = [script(f"{n}_gradient_analysis").load_results for n in ("layer", "sae")]
    results = [load(p) for load in both for p in (folder, moved, str(apart))]
    results.append(load_results(moved / "consolidated_results.npz"))
    keys = [f"layer_{i}_{m}" for i in (0, 2) for m in ("mean", "mean_abs")]
    for found in results:
        assert list(found["data"]) == keys
        assert found["metadata"] == results[0]["metadata"]
        for key in keys:
            np.testing.assert_array_equal(found["data"][key], results[0]["data"][key])
    stored = np.load(apart, allow_pickle=False)
    assert set(stored.files) == {*keys, "metadata"}
    assert json.loads(str(stored["metadata"]))["dimension_sizes"] == {"layer_0": 96, "layer_2": 96}
    about = results[0]["metadata"]
    assert set(about) >= {
        *("model_name", "aggregate_by", "aggregation_mode", "power", "normalization_mode"),
        *("dimension_sizes", "analysis_config", "layer_statistics", "timing", "how_to_load"),
    }
    assert set(about["layer_statistics"][keys[0]]) == {"mean", "std", "max", "sum_abs"}
    assert about["partial"] is False
    assert about["analysis_config"]["num_samples"] == 500
    names = {f.name for f in folder.iterdir()}
    kinds = ("mean_histogram", "mean_scatter", "mean_abs_histogram", "mean_abs_scatter", "combined")
    drawn = {f"{which}_{k}.png" for which in ("layer_0", "layer_2", "all_layers") for k in kinds}
    assert names >= {*drawn, "timing_stats.json", "timing_summary.txt", "metadata.json"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_same_run_gives_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_diffs.importance.running.figures", lambda *_: ())
    words = given(place, "--save_outputs", "--num_samples", "3", "--aggregate_by", "gradients")
    for name in ("one", "two"):
        outroot = ["--outroot", str(tmp_path / name)]
        assert run("layer_gradient_analysis", [*words, *outroot], monkeypatch) == 0
    one, two = (next((tmp_path / n / "importance").iterdir()) for n in ("one", "two"))
    files = sorted(f.name for f in one.glob("*.npy"))
    assert len(files) == tiny_models.LAYERS
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)


def test_without_save_outputs_only_a_summary_is_printed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("layer_gradient_analysis", given(place), monkeypatch) == 0
    assert "layer_2_mean_abs: 32 dimensions" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_interrupted_run_is_saved_and_marked_partial(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from model_diffs.importance.lenses import Neurons

    calls: list[int] = []
    real = Neurons.sums

    def sums(*words: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2 * tiny_models.LAYERS:
            raise KeyboardInterrupt
        return real(*words)

    monkeypatch.setattr(Neurons, "sums", sums)
    monkeypatch.setattr("model_diffs.importance.running.figures", lambda *_: ())
    words = given(place, "--save_outputs", "--outroot", str(tmp_path), "--batch_size", "1")
    assert run("layer_gradient_analysis", words, monkeypatch) == 130
    assert "interrupted after 2 of 4 texts" in capsys.readouterr().err
    (folder,) = (tmp_path / "importance").iterdir()
    about = load_results(folder)["metadata"]
    assert about["partial"] is True
    assert about["texts"] == 2
    assert (folder / "timing_summary.txt").read_text().startswith("INTERRUPTED")


def test_saes_are_found_by_the_model_where_none_are_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = given(place, "--layers", "0,1,2")
    assert run("sae_gradient_analysis", words, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "--sae is missing" in said and "./dictionary_learning_demo/" in said
    trained = tmp_path / "dictionary_learning_demo" / "tiny_batch_top_k"
    for trainer in (0, 1):
        below = trained / "mlp_out_layer_1" / f"trainer_{trainer}"
        field_saes.dictionary_learning(below, trainer, 1, "mlp_out_layer_1")
    assert run("sae_gradient_analysis", words, monkeypatch) == 2
    assert "--trainer 0 1" in capsys.readouterr().err
    assert run("sae_gradient_analysis", [*words, "--trainer", "1"], monkeypatch) == 0
    done = capsys.readouterr()
    assert "layer_1_mean_abs: 96 dimensions" in done.out
    assert "no SAE for mlp_out of layer 0, 2: skipped" in done.err
    assert run("sae_gradient_analysis", [*words, "--inactive"], monkeypatch) == 2
    assert "--inactive has no effect on values" in capsys.readouterr().err


def test_known_saes_are_used_or_named() -> None:
    assert sae_releases.of_model("google/gemma-2-2b") == "google/gemma-scope-2b-pt-mlp"
    assert sae_releases.of_model("gpt2") == "jbloom/GPT2-Small-SAEs-Reformatted"
    with pytest.raises(BadInput, match="known for it: NoamDiamant52"):
        sae_releases.of_model("Qwen/Qwen2.5-0.5B")
    with pytest.raises(BadInput, match="no SAEs are known for org_model"):
        sae_releases.of_model("org/model")


def test_releases_of_saelens_are_read_from_its_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without importing it: the library is not installed here."""
    (tmp_path / "sae_lens").mkdir()
    (tmp_path / "sae_lens" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "sae_lens" / "pretrained_saes.yaml").write_text(
        "one:\n  repo_id: org/first\n  saes:\n  - id: a\n    path: x/y\n"
        "two:\n  repo_id: org/second\n  saes:\n  - id: l0/b\n    path: z\n  - id: c\n    path: w\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sae_releases.locate("two:l0/b") == ("org/second", ("z",), None)
    assert sae_releases.locate("two") == ("org/second", ("z", "w"), None)
    assert sae_releases.locate("three:a") is None
    with pytest.raises(BadInput, match="the release one has no such SAE; it has a"):
        sae_releases.locate("one:b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "0-9"], "layers 0-2"),
        (["--model_name", "./nowhere"], "nowhere"),
        (["--dataset", "nothing.txt"], "nothing.txt"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--save_consolidated", "none/such/x.npz"], "none/such"),
        (["--save_consolidated", "."], "is a folder"),
        (["--outroot", "/dev/null/results"], "/dev/null is no folder"),
        (["--power", "1,x"], "--power"),
        (["--power", "0"], "--power"),
        (["--sae", "./nowhere"], "nowhere"),
        (["--layers", "1"], "no SAE for mlp_out of layer 1"),
        (["--site", "residual"], "no SAE for resid_post"),
        (["--site", "somewhere"], "'somewhere': one of auto"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any,
    words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    always = given(place, "--save_outputs", "--sae", str(place / "sae"))
    assert run("sae_gradient_analysis", [*always, *words], monkeypatch) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
