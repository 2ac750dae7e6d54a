"""SAEs as they are published: by the names that a user types, at the sites they were trained on.

Each is put on a hub of this machine in its own layout, opened by name, and its features of a tiny
model's tokens are compared with a forward pass and an encoder that are written out here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import field_saes
import numpy as np
import pytest
import test_sites
import tiny_models
import torch
from field_saes import Tensors
from loopback_hub import LoopbackHub, use

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import Tokens
from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae_choice, sae_sources
from model_diffs.dictionaries.options import SaeChoice
from model_diffs.importance import measuring
from model_diffs.importance.lenses import SaeFeatures
from model_diffs.importance.options import Options
from model_diffs.models.checkpoints import Checkpoint

LAYER = test_sites.LAYER
IDS = test_sites.IDS.tolist()
TOKENS = Tokens(IDS, [1], np.arange(1), {})
Encode = Callable[[Tensors, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def asked(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.asked.clear()
    use(hub, monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    families = ("gemma2", "llama", "gpt2")
    return {name: str(tiny_models.save(name, folder / name, seed=8)) for name in families}


# ── encoders, written out ─────────────────────────────────────────────────────────────────────────


def pre(w: Tensors, x: torch.Tensor) -> torch.Tensor:
    return x @ w["encoder"].T + w["b_enc"]


def jumprelu(w: Tensors, x: torch.Tensor) -> torch.Tensor:
    return pre(w, x) * (pre(w, x) > w["threshold"])


def top_k(w: Tensors, x: torch.Tensor) -> torch.Tensor:
    values = pre(w, x)
    limit = values.sort(-1, descending=True).values[:, field_saes.K - 1 : field_saes.K]
    return (values * (values >= limit)).clamp(min=0)


def batch_top_k(w: Tensors, x: torch.Tensor) -> torch.Tensor:
    values = pre(w, x - w["b_dec"])
    return values * (values > 0.7)


def scaled(read: float, limit: float) -> Encode:
    """LlamaScope: the activation is scaled to a mean norm of √d; the released threshold is of what
    the unscaled activation would give."""

    def encode(w: Tensors, x: torch.Tensor) -> torch.Tensor:
        scale = field_saes.D**0.5 / read
        values = (x * scale) @ w["encoder"].T + w["b_enc"]
        return values * (values / scale > limit)

    return encode


def normalised(w: Tensors, x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    return jumprelu(w, x / (x.std(-1, keepdim=True) + 1e-5))


def centred(w: Tensors, x: torch.Tensor) -> torch.Tensor:
    return jumprelu(w, x - x.mean(-1, keepdim=True))


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """A published layout: who writes it where, what a user types, what it encodes and how."""

    family: str
    repository: str
    write: Callable[[Path], Tensors]
    typed: str
    site: str
    read: str
    encode: Encode
    sizes: tuple[tuple[str, str], ...] = ()


LLAMA = "fnlp/Llama3_1-8B-Base-LX{}-8x"
SCOPE = "Llama3_1-8B-Base-L1{}-8x"
IN_16K = "layer_1/width_16k/average_l0_71"
TRANSCODER = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
CASES = {
    "GemmaScope residual": Case(
        "gemma2", "google/gemma-scope-2b-pt-res", lambda f: field_saes.gemma_scope(f / IN_16K, 1),
        "google/gemma-scope-2b-pt-res/" + IN_16K, "resid_post", "resid_post", jumprelu,
    ),
    "GemmaScope MLP": Case(
        "gemma2", "google/gemma-scope-2b-pt-mlp", lambda f: field_saes.gemma_scope(f / IN_16K, 2),
        "google/gemma-scope-2b-pt-mlp", "mlp_out_after_norm", "mlp_out_after_norm", jumprelu,
        (("width", "16k"), ("l0", "100")),
    ),
    "GemmaScope attention, as SAELens names it": Case(
        "gemma2", "google/gemma-scope-2b-pt-att", lambda f: field_saes.gemma_scope(f / IN_16K, 3),
        "gemma-scope-2b-pt-att-canonical:layer_1/width_16k/canonical", "attn_z", "attn_z", jumprelu,
    ),
    "GemmaScope transcoder": Case(
        "gemma2", "google/gemma-scope-2b-pt-transcoders",
        lambda f: field_saes.gemma_scope(f / IN_16K, 4),
        "google/gemma-scope-2b-pt-transcoders/layer_1", "mlp_out_after_norm", "mlp_in_before_gain",
        jumprelu,
    ),
    "GemmaScope 2 MLP": Case(
        "gemma2", "google/gemma-scope-2-1b-pt",
        lambda f: field_saes.gemma_scope_2(f / "mlp_out" / "layer_1_width_16k_l0_small", 5),
        "google/gemma-scope-2-1b-pt/mlp_out", "mlp_out_after_norm", "mlp_out_after_norm", jumprelu,
        (("l0", "small"),),
    ),
    "GemmaScope 2 transcoder": Case(
        "gemma2", "google/gemma-scope-2-1b-pt",
        lambda f: field_saes.gemma_scope_2(
            f / "transcoder" / "layer_1_width_16k_l0_big", 6, out="…output"),
        "google/gemma-scope-2-1b-pt/transcoder", "mlp_out_after_norm", "mlp_in", jumprelu,
    ),
    "LlamaScope MLP": Case(
        "llama", LLAMA.format("M"),
        lambda f: field_saes.llama_scope(f / SCOPE.format("M"), 7, "blocks.1.hook_mlp_out",
                                         "blocks.1.hook_mlp_out", (2.3, 2.3), 0.07),
        LLAMA.format("M"), "mlp_out", "mlp_out", scaled(2.3, 0.07),
    ),
    "LlamaScope residual, as SAELens names it": Case(
        "llama", LLAMA.format("R"),
        lambda f: field_saes.llama_scope(f / SCOPE.format("R"), 8, "blocks.1.hook_resid_post",
                                         "blocks.1.hook_resid_post", (7.5, 7.5), 0.2),
        "llama_scope_lxr_8x:l1r_8x", "resid_post", "resid_post", scaled(7.5, 0.2),
    ),
    "LlamaScope transcoder": Case(
        "llama", LLAMA.format("TC"),
        lambda f: field_saes.llama_scope(f / SCOPE.format("TC"), 9, "blocks.1.ln2.hook_normalized",
                                         "blocks.1.hook_mlp_out", (5.5, 5.5), 0.16),
        LLAMA.format("TC") + "/" + SCOPE.format("TC"), "mlp_out", "mlp_in_before_gain",
        scaled(5.5, 0.16),
    ),
    "sparsify": Case(
        "llama", "EleutherAI/sae-tiny", lambda f: field_saes.sparsify(f / "layers.1.mlp", 10),
        "EleutherAI/sae-tiny", "mlp_out", "mlp_out",
        lambda w, x: top_k(w, x - w["b_dec"]),
    ),
    "sparsify on Gemma 2: the MLP's output before the norm": Case(
        "gemma2", "EleutherAI/sae-gemma", lambda f: field_saes.sparsify(f / "layers.1.mlp", 11),
        "EleutherAI/sae-gemma/layers.1.mlp", "mlp_out", "mlp_out",
        lambda w, x: top_k(w, x - w["b_dec"]),
    ),
    "sparsify transcoder": Case(
        "gpt2", "EleutherAI/transcoder-tiny",
        lambda f: field_saes.sparsify(f / "h.1.mlp", 12, transcode=True),
        "EleutherAI/transcoder-tiny@main", "mlp_out", "mlp_in", top_k,
    ),
    "SAELens on Gemma 2: after the norm": Case(
        "gemma2", "org/gemma", lambda f: field_saes.saelens(
            f / "mlp", 13, metadata={"hook_name": "blocks.1.hook_mlp_out"}),
        "org/gemma/mlp", "mlp_out_after_norm", "mlp_out_after_norm", jumprelu,
    ),
    "SAELens on GPT-2, centred": Case(
        "gpt2", "jbloom/GPT2-Small-SAEs-Reformatted", lambda f: field_saes.saelens(
            f / "blocks.1.hook_resid_pre", 14, hook_point="blocks.1.hook_resid_pre",
            normalize_activations=False),
        "gpt2-small-res-jb:blocks.1.hook_resid_pre", "resid_pre", "resid_pre", centred,
    ),
    "SAELens on GPT-2, heads": Case(
        "gpt2", "org/heads", lambda f: field_saes.saelens(
            f / "z", 15, hook_name="blocks.1.attn.hook_z", reshape_activations="hook_z"),
        "org/heads", "attn_z", "attn_z", jumprelu,
    ),
    "SAELens on GPT-2, hidden": Case(
        "gpt2", "org/hidden", lambda f: field_saes.saelens(
            f, 16, d_in=128, hook_name="blocks.1.mlp.hook_post"),
        "org/hidden", "mlp_hidden", "mlp_hidden", jumprelu,
    ),
    "SAELens, normalised": Case(
        "llama", "org/normalised", lambda f: field_saes.saelens(
            f / "mid", 17, hook_name="blocks.1.hook_resid_mid", normalize_activations="layer_norm"),
        "org/normalised", "resid_mid", "resid_mid", normalised,
    ),
    "SAELens transcoder": Case(
        "llama", "org/transcoder", lambda f: field_saes.saelens(
            f / "t", 18, architecture="jumprelu_transcoder", metadata=TRANSCODER),
        "org/transcoder", "mlp_out", "mlp_in_before_gain", jumprelu,
    ),
    "dictionary_learning": Case(
        "gpt2", "org/learned", lambda f: field_saes.dictionary_learning(
            f / "resid_post_layer_1" / "trainer_0", 19, 1, "resid_post_layer_1"),
        "org/learned", "resid_post", "resid_post", batch_top_k, (("trainer", "0"),),
    ),
}  # fmt: skip


def opened(case: Case, model: str) -> sae_choice.Choice:
    sizes = SaeChoice(**dict(case.sizes))
    return sae_choice.choose_for(case.typed, Checkpoint.open(model), None, "auto", sizes)


@pytest.mark.parametrize("name", CASES)
def test_published_sae_encodes_what_it_was_trained_on(
    name: str, hub: LoopbackHub, tmp_path: Path, models: dict[str, str]
) -> None:
    case = CASES[name]
    w = case.write(tmp_path / "written")
    hub.put(case.repository, tmp_path / "written")
    choice = opened(case, models[case.family])
    assert (choice.site, list(choice.chosen)) == (case.site, [LAYER])
    assert (choice.entering or choice.site) == case.read
    found = sae_sources.fetch(choice.chosen[LAYER])
    sae = sae_choice.read(found, Checkpoint.open(models[case.family]))
    expected = case.encode(w, test_sites.by_hand(case.family)[case.read][1:])
    assert 0.01 < (expected > 0).float().mean() < 0.9
    options = Options(site=choice.site, aggregation_mode="both")
    reader = Reader("tiny", tiny_models.build(case.family, seed=8))
    lens = SaeFeatures({LAYER: sae}, choice.entering)
    means = measuring.measure(reader, TOKENS, 0, lens, (LAYER,), options).means[LAYER]
    torch.testing.assert_close(means[0].float(), expected.mean(0), rtol=1e-5, atol=1e-5)


# ── several per layer, names that do not fit ──────────────────────────────────────────────────────


def test_several_of_a_layer_are_listed_and_chosen_by_width_l0_or_folder(
    hub: LoopbackHub, tmp_path: Path, models: dict[str, str]
) -> None:
    for layer in (0, 1):
        for width, l0 in (("16k", 20), ("16k", 70 + layer), ("16k", 300), ("65k", 72)):
            place = tmp_path / f"layer_{layer}" / f"width_{width}" / f"average_l0_{l0}"
            field_saes.gemma_scope(place, layer)
    hub.put(name := "google/gemma-scope-2b-pt-res", tmp_path)
    gemma = Checkpoint.open(models["gemma2"])

    def names(typed: str, **sizes: str) -> list[str]:
        choice = sae_choice.choose_for(typed, gemma, None, "auto", SaeChoice(**sizes))
        return [one.name for one in choice.chosen.values()]

    with pytest.raises(BadInput, match=r"4 SAEs for layer 0: .*--width 16k 65k; --l0 20 70 72 300"):
        names(name)
    near = ["layer_0/width_16k/average_l0_70", "layer_1/width_16k/average_l0_71"]
    assert names(name, width="16k", l0="100") == names(name, width="16384", l0="71") == near
    assert names("gemma-scope-2b-pt-res-canonical:layer_1/width_16k/canonical") == near[1:]
    assert names(f"{name}/{near[1]}") == near[1:]
    with pytest.raises(BadInput, match="no such SAE for layer 0"):
        names(name, width="1m")
    asked = [one for one in hub.asked if "/resolve/" in one]
    assert not any("params.npz" in one for one in asked), "no weights before a choice is made"


def test_wrong_site_layer_or_model_is_refused_by_what_there_is(
    hub: LoopbackHub, tmp_path: Path, models: dict[str, str], capsys: Any
) -> None:
    field_saes.saelens(tmp_path / "mlp", 1, hook_name="blocks.1.hook_mlp_out")
    hub.put("org/one", tmp_path)
    gemma, none = Checkpoint.open(models["gemma2"]), SaeChoice()
    with pytest.raises(BadInput, match=r"no SAE for mlp_out; it has mlp \(mlp_out_after_norm of 1"):
        sae_choice.choose_for("org/one", gemma, None, "mlp_out", none)
    with pytest.raises(BadInput, match="no SAE for mlp_out_after_norm of layer 0"):
        sae_choice.choose_for("org/one", gemma, (0,), "auto", none)
    choice = sae_choice.choose_for("org/one", gemma, (0, 1, 2), "auto", none)
    assert (list(choice.chosen), choice.missing) == ([1], [0, 2])
    assert "no SAE for mlp_out_after_norm of layer 0, 2: skipped" in capsys.readouterr().err
    # The same SAEs on a model without that norm are of the MLP's output.
    llama = Checkpoint.open(models["llama"])
    assert sae_choice.choose_for("org/one", llama, None, "mlp_out", none).site == "mlp_out"
    for wrong in ("no-such-release", "no_such_release:blocks.1", "./nowhere"):
        with pytest.raises(BadInput, match="no such folder"):
            sae_sources.find(wrong)
    with pytest.raises(BadInput, match="an SAE of it is named as l15m_8x"):
        sae_sources.find("llama_scope_lxm_8x:15")
    with pytest.raises(BadInput, match=r"neither on this disk nor \(publicly\) on the hub"):
        sae_sources.find("org/absent")
    hub.put("org/empty", {"README.md": b"nothing"})
    with pytest.raises(BadInput, match="no SAE in it; looked for"):
        sae_sources.find("org/empty")


def test_sae_that_does_not_say_whether_it_was_centred_is_asked_for(
    hub: LoopbackHub, tmp_path: Path, models: dict[str, str]
) -> None:
    """Only where it matters: what is written to the residual stream of a model with LayerNorms."""
    field_saes.saelens(tmp_path / "one", 1, hook_name="blocks.1.hook_mlp_out")
    hub.put("org/unsaid", tmp_path)
    gpt2, llama = (Checkpoint.open(models[name]) for name in ("gpt2", "llama"))
    (found,) = sae_sources.find("org/unsaid")
    found = sae_sources.fetch(found)
    with pytest.raises(BadInput, match="--centred or --no-centred"):
        sae_choice.read(found, gpt2)
    assert sae_choice.read(found, gpt2, True).centred
    assert not sae_choice.read(found, gpt2, False).centred
    assert not sae_choice.read(found, llama).centred
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    field_saes.saelens(tmp_path / "two", 1, hook_name="blocks.1.hook_mlp_out", metadata=kwargs)
    (found,) = sae_sources.find(str(tmp_path / "two"))
    assert sae_choice.read(found, gpt2).centred


def test_what_was_downloaded_is_opened_without_the_hub(
    hub: LoopbackHub, tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    field_saes.sparsify(tmp_path / "layers.1.mlp", 1)
    hub.put("org/kept", tmp_path)
    (found,) = sae_sources.find("org/kept")
    before = sae_sources.fetch(found).folder
    with LoopbackHub() as gone:
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", gone.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", gone.url)
    (found,) = sae_sources.find("org/kept")
    assert found.folder == before
