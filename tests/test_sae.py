"""Sparse autoencoders: three formats read back, and activations against their definitions."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae as sae_module
from model_diffs.dictionaries import sae_files, sae_sources
from model_diffs.dictionaries.sae import Features, Sae
from model_diffs.dictionaries.sae_files import LEARNING, SAELENS, SPARSIFY, read_sae

D, L, K = tiny_models.HIDDEN, 160, 6


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    encoder = torch.randn(L, D) / D**0.5
    return {
        "encoder": encoder,
        "encoder_bias": 0.1 * torch.randn(L),
        "decoder": encoder / encoder.norm(dim=1, keepdim=True) + 0.05 * torch.randn(L, D),
        "decoder_bias": 0.3 * torch.randn(D),
        "threshold": torch.rand(L),
        "r_mag": 0.3 * torch.randn(L),
        "mag_bias": 0.2 * torch.randn(L),
    }


X = torch.randn(40, D, generator=torch.Generator().manual_seed(9))


def dense(found: Features, tokens: int, size: int = L) -> torch.Tensor:
    out = torch.zeros(tokens, size)
    out[found.tokens, found.features] = found.values
    return out


# ── formats, each written by hand ─────────────────────────────────────────────────────────────────


def write_sparsify(folder: Path, **config: Any) -> None:
    w = weights()
    folder.mkdir(parents=True, exist_ok=True)
    told = {"activation": "topk", "expansion_factor": L // D, "num_latents": L, "k": K, "d_in": D}
    told |= {"normalize_decoder": True, "multi_topk": False, "transcode": False, **config}
    (folder / "cfg.json").write_text(json.dumps(told))
    save_file(
        {
            "encoder.weight": w["encoder"],
            "encoder.bias": w["encoder_bias"],
            "W_dec": w["decoder"],
            "b_dec": w["decoder_bias"],
        },
        folder / "sae.safetensors",
    )


def write_saelens(folder: Path, **config: Any) -> None:
    w = weights()
    folder.mkdir(parents=True, exist_ok=True)
    told = {"architecture": "standard", "d_in": D, "d_sae": L, "apply_b_dec_to_input": False}
    told |= {"normalize_activations": "none", **config}
    (folder / "cfg.json").write_text(json.dumps(told))
    tensors = {
        "W_enc": w["encoder"].T.contiguous(),
        "W_dec": w["decoder"],
        "b_dec": w["decoder_bias"],
    }
    if told["architecture"] == "gated":
        tensors |= {"b_gate": w["encoder_bias"], "r_mag": w["r_mag"], "b_mag": w["mag_bias"]}
    else:
        tensors |= {"b_enc": w["encoder_bias"]}
    if told["architecture"] == "jumprelu":
        tensors |= {"threshold": w["threshold"]}
    if told["architecture"] == "batchtopk":
        tensors |= {"topk_threshold": torch.tensor(0.7)}
    save_file(tensors, folder / "sae_weights.safetensors")


def write_learning(folder: Path, dict_class: str, **trainer: Any) -> None:
    w = weights()
    folder.mkdir(parents=True, exist_ok=True)
    told = {"dict_class": dict_class, "activation_dim": D, "dict_size": L, "k": K, **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": told, "buffer": {}}))
    tensors = {
        "encoder.weight": w["encoder"],
        "encoder.bias": w["encoder_bias"],
        "decoder.weight": w["decoder"].T.contiguous(),
    }
    if dict_class == "AutoEncoder":
        tensors |= {"bias": w["decoder_bias"]}
    elif dict_class == "AutoEncoderNew":
        tensors |= {"decoder.bias": w["decoder_bias"]}
    elif dict_class == "GatedAutoEncoder":
        del tensors["encoder.bias"]
        tensors |= {"decoder_bias": w["decoder_bias"], "gate_bias": w["encoder_bias"]}
        tensors |= {"r_mag": w["r_mag"], "mag_bias": w["mag_bias"]}
    elif dict_class == "JumpReluAutoEncoder":
        tensors = {"W_enc": w["encoder"].T.contiguous(), "W_dec": w["decoder"]}
        tensors |= {"b_enc": w["encoder_bias"], "b_dec": w["decoder_bias"]}
        tensors |= {"threshold": w["threshold"]}
    else:
        tensors |= {"b_dec": w["decoder_bias"], "k": torch.tensor(K)}
        tensors |= {"threshold": torch.tensor(0.7)}
    torch.save(tensors, folder / "ae.pt")


# ── the definitions, dense and plain ──────────────────────────────────────────────────────────────


def pre(subtract: bool) -> torch.Tensor:
    w = weights()
    x = X - w["decoder_bias"] if subtract else X
    return x @ w["encoder"].T + w["encoder_bias"]


def by_relu(subtract: bool) -> torch.Tensor:
    return pre(subtract).clamp(min=0)


def by_top_k(subtract: bool) -> torch.Tensor:
    out = torch.zeros(len(X), L)
    for row, values in enumerate(pre(subtract)):
        for place in sorted(range(L), key=lambda j: -float(values[j]))[:K]:
            out[row, place] = max(float(values[place]), 0.0)
    return out


def by_threshold(subtract: bool, threshold: Any = None) -> torch.Tensor:
    values = pre(subtract)
    over = values > (weights()["threshold"] if threshold is None else threshold)
    return values.clamp(min=0) * over


def by_gate(subtract: bool) -> torch.Tensor:
    w = weights()
    x = X - w["decoder_bias"] if subtract else X
    gate = x @ w["encoder"].T + w["encoder_bias"] > 0
    return gate * (x @ (w["encoder"].T * w["r_mag"].exp()) + w["mag_bias"]).clamp(min=0)


Case = tuple[str, Callable[[Path], None], Callable[[], torch.Tensor]]
CASES: dict[str, Case] = {
    "sparsify": (SPARSIFY, write_sparsify, lambda: by_top_k(True)),
    "sparsify, num_latents 0": (
        *(SPARSIFY, lambda f: write_sparsify(f, num_latents=0), lambda: by_top_k(True)),
    ),
    "sparsify transcoder": (
        *(SPARSIFY, lambda f: write_sparsify(f, transcode=True), lambda: by_top_k(False)),
    ),
    "SAELens standard": (SAELENS, write_saelens, lambda: by_relu(False)),
    "SAELens standard, centred": (
        *(SAELENS, lambda f: write_saelens(f, apply_b_dec_to_input=True), lambda: by_relu(True)),
    ),
    "SAELens topk": (
        *(SAELENS, lambda f: write_saelens(f, architecture="topk", k=K), lambda: by_top_k(False)),
    ),
    "SAELens jumprelu": (
        *(SAELENS, lambda f: write_saelens(f, architecture="jumprelu")),
        lambda: by_threshold(False),
    ),
    "SAELens gated": (
        *(SAELENS, lambda f: write_saelens(f, architecture="gated"), lambda: by_gate(False)),
    ),
    "SAELens batchtopk": (
        *(SAELENS, lambda f: write_saelens(f, architecture="batchtopk")),
        lambda: by_threshold(False, 0.7),
    ),
    "AutoEncoder": (
        *(LEARNING, lambda f: write_learning(f, "AutoEncoder"), lambda: by_relu(True)),
    ),
    "AutoEncoderNew": (
        *(LEARNING, lambda f: write_learning(f, "AutoEncoderNew"), lambda: by_relu(False)),
    ),
    "GatedAutoEncoder": (
        *(LEARNING, lambda f: write_learning(f, "GatedAutoEncoder"), lambda: by_gate(True)),
    ),
    "JumpReluAutoEncoder": (
        *(LEARNING, lambda f: write_learning(f, "JumpReluAutoEncoder")),
        lambda: by_threshold(False),
    ),
    "AutoEncoderTopK": (
        *(LEARNING, lambda f: write_learning(f, "AutoEncoderTopK"), lambda: by_top_k(True)),
    ),
    "BatchTopKSAE": (
        *(LEARNING, lambda f: write_learning(f, "BatchTopKSAE")),
        lambda: by_threshold(True, 0.7),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_format_is_encoded_as_defined(name: str, tmp_path: Path) -> None:
    kind, write, definition = CASES[name]
    write(tmp_path / "sae")
    (found,) = sae_sources.find(str(tmp_path / "sae"))
    assert found.format == kind
    sae, w = read_sae(found.folder, found.format), weights()
    for part in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
        assert torch.equal(getattr(sae, part), w[part])  # exactly, and the right way round
    assert (sae.d_in, sae.d_sae) == (D, L)
    expected = definition()
    assert (expected > 0).any() and (expected == 0).any()
    got = sae.encode(X)
    torch.testing.assert_close(dense(got, len(X)), expected, rtol=1e-5, atol=1e-6)
    decoded = expected @ w["decoder"] + w["decoder_bias"]
    torch.testing.assert_close(sae.decode(got, len(X)), decoded, rtol=1e-5, atol=1e-5)


def test_features_scaled_by_decoder_norms_give_the_same_reconstruction(tmp_path: Path) -> None:
    write_saelens(tmp_path, architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    sae, w = read_sae(tmp_path, SAELENS), weights()
    norm = w["decoder"].norm(dim=1)
    scaled = (pre(False) * norm).clamp(min=0)
    top = scaled.topk(K)
    expected = torch.zeros(len(X), L).scatter(1, top.indices, top.values)
    got = sae.encode(X)
    torch.testing.assert_close(dense(got, len(X)), expected, rtol=1e-5, atol=1e-6)
    decoded = (expected / norm) @ w["decoder"] + w["decoder_bias"]
    torch.testing.assert_close(sae.decode(got, len(X)), decoded, rtol=1e-5, atol=1e-5)


def test_written_sae_is_read_back(tmp_path: Path) -> None:
    w = weights()
    parts = [w[name] for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")]
    sae_files.write_sparsify(tmp_path, Sae(*parts, "topk", subtract=True, k=K), L // D)
    back = read_sae(tmp_path, SPARSIFY)
    assert all(
        torch.equal(getattr(back, name), w[name])
        for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")
    )
    assert back.k == K and back.subtract and not back.transcoder


# ── which features are active, and their slopes ───────────────────────────────────────────────────


def plain(activation: str = "relu", **given: Any) -> Sae:
    """Four features that are the entries of what goes in."""
    parts = [torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4)]
    return Sae(*parts, activation, subtract=False, **given)


@pytest.mark.parametrize(
    ("sae", "active"),
    [
        (plain(), {0: 0.5, 3: 2.0}),
        (plain("topk", k=4), {0: 0.5, 3: 2.0}),
        (plain("topk", k=1), {3: 2.0}),
        # Nothing below zero is active, nor what equals its threshold.
        (plain("jumprelu", threshold=torch.tensor([0.4, -2.0, -1.0, 2.0])), {0: 0.5}),
        (plain("batchtopk", threshold=torch.tensor(0.5)), {3: 2.0}),
        # Magnitudes 1.5, 0.5, 0, 3: a gate at zero is closed, and so is a magnitude of zero.
        (replace(plain("gated", magnitude=torch.tensor([[1.0] * 4, [1.0, 1.5, 0.0, 1.0]])),
                 encoder_bias=torch.tensor([-0.5, 1.0, 1.0, 0.0])), {3: 3.0}),
    ],
)  # fmt: skip
def test_only_what_is_above_zero_and_its_threshold_is_active(
    sae: Sae, active: dict[int, float]
) -> None:
    found = sae.encode(torch.tensor([[0.0] * 4, [0.5, -1.0, 0.0, 2.0]]))
    of_second = found.tokens == 1
    got = zip(found.features[of_second].tolist(), found.values[of_second].tolist(), strict=True)
    assert dict(got) == active and (found.values > 0).all()
    if sae.magnitude is None:
        assert of_second.all(), "a token of zeros has none"


@pytest.mark.parametrize("share", [0.0, 2.0])
@pytest.mark.parametrize("entries", [1, 3 * D, 1 << 22])
def test_slopes_are_the_gradients_of_the_features(
    share: float, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both ways to them, against autograd through the reconstruction."""
    monkeypatch.setattr(sae_module, "_DENSE_SHARE", share)
    monkeypatch.setattr(sae_module, "_DECODER_ROWS", entries)
    w = weights()
    parts = [w[name] for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")]
    sae = Sae(*parts, "topk", subtract=True, k=K)
    found = sae.encode(X)
    direction = torch.randn(len(X), D, generator=torch.Generator().manual_seed(1))
    values = found.values.clone().requires_grad_()
    loss = (sae.decode(found._replace(values=values), len(X)) * direction).sum()
    (expected,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(sae.slopes(found, direction), expected, rtol=1e-5, atol=1e-6)
    none = Features(*(column[:0] for column in found))
    assert sae.slopes(none, direction).shape == (0,)
    sizes = [len(part.values) for part in sae_module._parts(found, D)]
    assert sum(sizes) == len(found.values) and max(sizes) <= max(1, entries // D)


def test_an_autoencoder_moves_with_all_its_tensors() -> None:
    sae = plain("jumprelu", threshold=torch.ones(4), magnitude=torch.ones(2, 4))
    moved = sae.to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6 and all(one.is_meta for one in tensors)
    assert (moved.activation, moved.k, moved.transcoder) == ("jumprelu", 0, False)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_unknown_options_and_wrong_shapes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused: list[tuple[Callable[[Path], None], str, str]] = [
        (lambda f: write_sparsify(f, activation="groupmax"), SPARSIFY, "groupmax"),
        (lambda f: write_sparsify(f, d_in=48), SPARSIFY, r"expected \[160, 48\]"),
        (lambda f: write_sparsify(f, num_latents=0, expansion_factor=9), SPARSIFY, "288"),
        (lambda f: write_sparsify(f, k=0), SPARSIFY, "k is 0"),
        (lambda f: write_sparsify(f, k="many"), SPARSIFY, "whole number"),
        (lambda f: write_saelens(f, architecture="temporal"), SAELENS, "temporal"),
        (lambda f: write_saelens(f, normalize_activations="whitening"), SAELENS, "whitening"),
        (lambda f: write_saelens(f, d_sae=8), SAELENS, "W_enc"),
        (lambda f: write_learning(f, "CrossCoder"), LEARNING, "CrossCoder"),
        (lambda f: write_learning(f, "AutoEncoder", dict_size=7), LEARNING, r"expected \[7, 32\]"),
    ]
    for number, (write, kind, message) in enumerate(refused):
        folder = tmp_path / str(number)
        write(folder)
        with pytest.raises(BadInput, match=message):
            read_sae(folder, kind)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_learning(tmp_path, "AutoEncoder")
    torch.save({"bias": Planted()}, tmp_path / "ae.pt")
    with pytest.raises(BadInput, match="not run"):
        read_sae(tmp_path, LEARNING)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(BadInput):
        read_sae(tmp_path, LEARNING)
    assert not Path("ran").exists()


def test_untrained_batch_threshold_is_refused(tmp_path: Path) -> None:
    write_learning(tmp_path, "BatchTopKSAE")
    tensors = torch.load(tmp_path / "ae.pt", weights_only=True)
    torch.save({**tensors, "threshold": torch.tensor(-1.0)}, tmp_path / "ae.pt")
    with pytest.raises(BadInput, match="never set"):
        read_sae(tmp_path, LEARNING)
