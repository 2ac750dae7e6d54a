"""Weights are read as they were saved; damaged or incompatible models are refused in one line."""

import json
import shutil

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from model_diffs.core.errors import BadInput
from model_diffs.models.checkpoints import Checkpoint, match


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_models.save("llama", tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def rewrite(folder, change):
    """Change the tensors of a model folder in place."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    changed = change(tensors) or tensors
    path.unlink()  # maps of the old file stay valid
    save_file(changed, path)


def configure(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder, pattern):
    with pytest.raises(BadInput, match=pattern) as caught:
        Checkpoint.open(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_tensors_equal_those_of_the_file(family, tmp_path):
    folder = tiny_models.save(family, tmp_path / "m")
    checkpoint = Checkpoint.open(str(folder))
    stored = load_file(folder / "model.safetensors")
    for name in checkpoint.entries:
        assert torch.equal(checkpoint.tensor(name), stored[name])
        assert checkpoint.entries[name].shape == tuple(stored[name].shape)
    assert checkpoint.weights == sum(checkpoint.tensor(name).numel() for name in checkpoint.entries)
    components = [matrix.component for matrix in checkpoint.matrices()]
    tied = bool(tiny_models.config(family).tie_word_embeddings)
    assert components.count("head") == (0 if tied else 1)


def test_shards_and_legacy_files_give_the_same_tensors(saved, tmp_path):
    whole = Checkpoint.open(str(saved))
    tensors = load_file(saved / "model.safetensors")
    sharded, legacy = tmp_path / "sharded", tmp_path / "legacy"
    for folder in (sharded, legacy):
        folder.mkdir()
        shutil.copy(saved / "config.json", folder)
    places = {n: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, n in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({n: tensors[n] for n in tensors if places[n] == shard}, sharded / shard)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    torch.save(tensors, legacy / "pytorch_model.bin")
    for folder in (sharded, legacy):
        other = Checkpoint.open(str(folder))
        assert match(whole, other) == {name: name for name in whole.entries}
        assert all(torch.equal(whole.tensor(n), other.tensor(n)) for n in whole.entries)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "model-00002-of-00002.safetensors is missing")
    places[next(iter(places))] = "../elsewhere.safetensors"
    index.write_text(json.dumps({"weight_map": places}))
    refused(sharded, "not a file beside it")


def test_a_pickle_with_code_is_refused(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"x": refused}, copy / "pytorch_model.bin")
    refused(copy, "pytorch_model.bin is corrupt, or not plain tensors")


@pytest.mark.parametrize("keep", [4, 300, -50])
def test_truncated_shard_is_named(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(copy, "model.safetensors is truncated or corrupt")


def test_missing_parts_are_named(copy, tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    (copy / "model.safetensors").unlink()
    refused(copy, "no weights")
    (copy / "config.json").write_text("{")
    refused(copy, "config.json is not valid JSON")
    (copy / "config.json").unlink()
    refused(copy, "no config.json")


def test_nan_and_inf_are_refused_with_the_name_of_the_tensor(copy):
    name, norm = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    rewrite(copy, lambda tensors: tensors[name].__setitem__((3, 4), float("inf")))
    checkpoint = Checkpoint.open(str(copy))
    for matrix in checkpoint.matrices():
        if matrix.name == name:
            with pytest.raises(BadInput, match=rf"{name}.*NaN or Inf"):
                checkpoint.matrix(matrix)
        else:
            checkpoint.matrix(matrix)
    checkpoint.check_vectors()
    rewrite(copy, lambda tensors: tensors[norm].__setitem__(3, float("nan")))
    with pytest.raises(BadInput, match=rf"{norm}.*NaN or Inf"):
        Checkpoint.open(str(copy)).check_vectors()


def unlike(a, b, pattern):
    with pytest.raises(BadInput, match=pattern):
        match(Checkpoint.open(str(a)), Checkpoint.open(str(b)))


def test_models_of_different_architectures_are_refused(saved, tmp_path):
    other = tiny_models.save("llama", tmp_path / "vocabulary", vocab_size=300)
    unlike(saved, other, "vocabularies differ")
    configure(other, vocab_size=tiny_models.VOCABULARY)
    unlike(saved, other, "vocabularies differ, .*embed_tokens|vocabularies differ, .*lm_head")
    unlike(saved, tiny_models.save("llama", tmp_path / "w", intermediate_size=48), "intermediate")
    unlike(saved, tiny_models.save("gpt_neox", tmp_path / "n"), "model_type is llama")
    unlike(saved, tiny_models.save("llama", tmp_path / "t", tie_word_embeddings=True), "ties")


def test_a_missing_tensor_is_named_and_a_prefix_is_tolerated(saved, copy):
    rewrite(copy, lambda t: {name.removeprefix("model."): tensor for name, tensor in t.items()})
    names = match(Checkpoint.open(str(saved)), Checkpoint.open(str(copy)))
    assert names["model.norm.weight"] == "norm.weight"
    assert names["lm_head.weight"] == "lm_head.weight"
    rewrite(copy, lambda t: {n: x for n, x in t.items() if "layers.2.mlp.up" not in n})
    unlike(saved, copy, r"model.layers.2.mlp.up_proj.weight is in .* but not in")


def test_a_stored_copy_of_a_tied_head_is_left_out(tmp_path):
    folder = tiny_models.save("gemma", tmp_path / "m")
    names = list(Checkpoint.open(str(folder)).entries)
    key = "model.embed_tokens.weight"
    rewrite(folder, lambda t: {**t, "lm_head.weight": t[key].clone()})
    assert list(Checkpoint.open(str(folder)).entries) == names


def test_identity_follows_config_and_headers(saved, copy):
    first = Checkpoint.open(str(saved)).identity()
    again = Checkpoint.open(str(copy)).identity()
    assert {**first, "model": ""} == {**again, "model": ""}
    configure(copy, note="changed")
    assert Checkpoint.open(str(copy)).identity()["config_sha256"] != first["config_sha256"]


def test_hub_names_with_path_tricks_are_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("org/../name", "-x/y", "org/name@../../etc"):
        with pytest.raises(BadInput):
            Checkpoint.open(name)
