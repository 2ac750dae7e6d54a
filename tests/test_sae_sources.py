"""Which SAE is for which place of a model, and where it is found."""

from pathlib import Path

import pytest
from test_sae import write_learning, write_saelens, write_sparsify

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae_choice, sae_sources
from model_diffs.dictionaries.hook_points import OTHER, place_of
from model_diffs.dictionaries.sae_files import LEARNING, SPARSIFY


@pytest.mark.parametrize(
    ("name", "layer", "site"),
    [
        ("layers.3.mlp", 3, "mlp_out"),
        ("layers.3", 3, "resid_post"),
        ("layer_3", 3, "resid_post"),
        ("layers.3.attention", 3, "attn_out"),
        ("layers.3.post_attention_layernorm", 3, OTHER),
        ("h.11.mlp", 11, "mlp_out"),
        ("blocks.3.hook_mlp_out", 3, "mlp_out_after_norm"),
        ("blocks.3.hook_attn_out", 3, "attn_out_after_norm"),
        ("blocks.3.hook_resid_post", 3, "resid_post"),
        ("blocks.3.hook_resid_mid", 3, "resid_mid"),
        ("blocks.3.hook_resid_pre", 3, "resid_pre"),
        ("blocks.3.mlp.hook_post", 3, "mlp_hidden"),
        ("blocks.3.attn.hook_z", 3, "attn_z"),
        ("blocks.3.ln2.hook_normalized", 3, "mlp_in_before_gain"),
        ("blocks.3.attn.hook_q", 3, OTHER),
        ("resid_post_layer_3", 3, "resid_post"),
        ("mlp_out_layer_3", 3, "mlp_out"),
        ("attn_out_layer0", 0, "attn_out"),
        ("trainer_0", None, None),
    ],
)
def test_layer_and_site_are_read_from_names(name: str, layer: int | None, site: str | None) -> None:
    assert place_of(name) == (layer, site, None)


def test_layer_gets_the_sae_of_its_site(tmp_path: Path) -> None:
    source = str(tmp_path)
    write_sparsify(tmp_path / "layers.0.mlp")
    write_sparsify(tmp_path / "layers.2.mlp")
    write_saelens(tmp_path / "b", hook_name="blocks.1.hook_resid_post")
    write_learning(tmp_path / "mlp" / "trainer_0", "AutoEncoder", layer=1, submodule_name="mlp_out")
    found = sae_sources.find(source)
    assert sae_choice.choose(source, found, None).site == "mlp_out"  # of several sites
    choice = sae_choice.choose(source, found, None, "mlp_out")
    assert {layer: one.format for layer, one in choice.chosen.items()} == {
        0: SPARSIFY,
        1: LEARNING,
        2: SPARSIFY,
    }
    assert list(sae_choice.choose(source, found, None, "residual").chosen) == [1]
    some = sae_choice.choose(source, found, (0, 3), "mlp_out")
    assert (list(some.chosen), some.missing) == ([0], [3])
    with pytest.raises(BadInput, match=r"no SAE for mlp_out of layer 3.*layers\.0\.mlp"):
        sae_choice.choose(source, found, (3,), "mlp_out")
    with pytest.raises(BadInput, match="no SAE for mlp_hidden"):
        sae_choice.choose(source, found, None, "mlp_hidden")
    write_sparsify(tmp_path / "other" / "layers.2.mlp")
    with pytest.raises(BadInput, match="2 SAEs for layer 2"):
        sae_choice.choose(source, sae_sources.find(source), None, "mlp_out")
    write_sparsify(tmp_path / "other" / "nameless")
    nameless = str(tmp_path / "other" / "nameless")
    one = sae_sources.find(nameless)
    assert list(sae_choice.choose(nameless, one, (5,), "mlp_out").chosen) == [5]
    with pytest.raises(BadInput, match="do not say"):
        sae_choice.choose(nameless, one, (5,))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match="no SAE in it"):
        sae_sources.find(str(empty))


def test_only_configurations_and_chosen_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in (0, 1):
        write_sparsify(tmp_path / f"layers.{layer}.mlp")
    fetched: list[str] = []

    def listed(repo_id: str, revision: str | None, token: object) -> list[str]:
        assert (repo_id, revision) == ("org/saes", "v2")
        return [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]

    def snapshot(allow_patterns: list[str], **_: object) -> str:
        assert all(pattern.endswith(".json") for pattern in allow_patterns)
        return str(tmp_path)

    def download(filename: str, **_: object) -> str:
        fetched.append(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.list_repo_files", listed)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = sae_sources.find("org/saes@v2")
    chosen = sae_choice.choose("org/saes@v2", found, (1,), "mlp_out").chosen
    assert sae_sources.fetch(chosen[1]).folder == tmp_path / "layers.1.mlp"
    assert fetched == ["layers.1.mlp/sae.safetensors"]


def test_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.list_repo_files", unreachable)
    with pytest.raises(BadInput, match="cannot be reached"):
        sae_sources.find("org/saes")
