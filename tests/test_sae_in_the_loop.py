"""Sparse autoencoders in the loop of a model: values, gradients, and what stays sparse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn import functional

from model_diffs.activations.passes import Reader, Tokens
from model_diffs.core.errors import BadInput
from model_diffs.dictionaries.sae import Features, Sae
from model_diffs.importance import measuring
from model_diffs.importance.lenses import Neurons, SaeFeatures
from model_diffs.importance.options import Options

D, L, K = tiny_models.HIDDEN, 160, 6
IDS = [[1, 20, 30, 40, 50, 60, 70], [1, 99], [5, 6, 7, 8]]
STARTS = [1, 1, 0]
TOKENS = Tokens(IDS, STARTS, np.arange(3), {})
X = torch.randn(40, D, generator=torch.Generator().manual_seed(9))


def dense(found: Features, tokens: int, size: int = L) -> torch.Tensor:
    out = torch.zeros(tokens, size)
    out[found.tokens, found.features] = found.values
    return out


def parts_of(sae_seed: int = 2) -> list[torch.Tensor]:
    """W_enc, b_enc, W_dec, b_dec."""
    torch.manual_seed(sae_seed)
    encoder = torch.randn(L, D) / D**0.5
    decoder = encoder / encoder.norm(dim=1, keepdim=True) + 0.05 * torch.randn(L, D)
    return [encoder, 0.1 * torch.randn(L), decoder, 0.3 * torch.randn(D)]


def an_sae(activation: str) -> Sae:
    parts = parts_of()
    kinds: dict[str, Any] = {
        "topk": {"k": K},
        "jumprelu": {"threshold": torch.rand(L)},
        "gated": {"magnitude": ((0.3 * torch.randn(L)).exp(), 0.2 * torch.randn(L))},
        "relu": {},
    }
    return Sae(*parts, activation, subtract=True, **kinds[activation])


def losses_in_the_loop(
    model: Any, layer: int, sae: Sae, change: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[float, list[torch.Tensor], list[torch.Tensor]]:
    """Summed loss with features (changed) decoded and the error added back, text by text; the
    features `[positions, d_sae]` and ∂loss/∂features of each."""
    total, features, slopes = 0.0, [], []
    for ids in IDS:
        held: list[torch.Tensor] = []

        def hook(module: Any, args: Any, output: Any, held: list[torch.Tensor] = held) -> Any:
            x = output[0]
            f = dense(sae.encode(x), len(x), sae.d_sae).requires_grad_()
            error = (x - (f @ sae.decoder + sae.decoder_bias)).detach()
            held.append(f)
            return (change(f) @ sae.decoder + sae.decoder_bias + error)[None]

        handle = model.model.layers[layer].mlp.register_forward_hook(hook)
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        handle.remove()
        loss = functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
        total += loss.item()
        features.append(held[0].detach())
        slopes.append(torch.autograd.grad(loss, held[0])[0])
    return total, features, slopes


PREDICTIONS = sum(len(ids) - 1 for ids in IDS)


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "gated", "relu"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_feature_means_are_those_of_an_sae_in_the_loop(activation: str, batch_size: int) -> None:
    model, sae, layer = tiny_models.build("llama", seed=8), an_sae(activation), 1
    plain = sum(
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        * (len(ids) - 1)
        for ids in IDS
    )
    looped, features, slopes = losses_in_the_loop(model, layer, sae, lambda f: f)
    assert looped == pytest.approx(plain, rel=1e-5)  # the error added back leaves the loss alone
    counted = [slice(start, None) for start in STARTS]
    f = torch.cat([one[part] for one, part in zip(features, counted, strict=True)]).double()
    g = torch.cat([one[part] for one, part in zip(slopes, counted, strict=True)]).double()
    g = g * (f > 0)  # nothing flows through what is not active
    reader, lens = Reader("tiny", model), SaeFeatures({layer: sae})
    values = measuring.measure(reader, TOKENS, 0, lens, (layer,), Options(batch_size=batch_size))
    expected = torch.stack([f.mean(0), f.abs().mean(0)])
    np.testing.assert_allclose(values.means[layer], expected, rtol=1e-4, atol=1e-6)
    options = Options(aggregate_by="gradients", batch_size=batch_size)
    found = measuring.measure(reader, TOKENS, 0, lens, (layer,), options)
    expected = torch.stack([g.sum(0), g.abs().sum(0)]) / PREDICTIONS
    np.testing.assert_allclose(found.means[layer], expected, rtol=1e-4, atol=1e-6)
    assert found.mean_loss == pytest.approx(plain / PREDICTIONS, rel=1e-5)


def test_inactive_features_have_gradients_where_that_is_asked_for() -> None:
    model, sae, layer = tiny_models.build("llama", seed=8), an_sae("jumprelu"), 1
    _, features, slopes = losses_in_the_loop(model, layer, sae, lambda f: f)
    counted = [slice(start, None) for start in STARTS]
    g = torch.cat([one[part] for one, part in zip(slopes, counted, strict=True)]).double()
    reader, options = Reader("tiny", model), Options(aggregate_by="gradients", batch_size=3)
    lens = SaeFeatures({layer: sae}, inactive=True)
    found = measuring.measure(reader, TOKENS, 0, lens, (layer,), options)
    expected = torch.stack([g.sum(0), g.abs().sum(0)]) / PREDICTIONS
    np.testing.assert_allclose(found.means[layer], expected, rtol=1e-4, atol=1e-6)
    never = (torch.cat(features) > 0).sum(0) == 0
    assert never.any() and (found.means[layer][1][never] > 0).all()


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm"])
@pytest.mark.parametrize("centred", [False, True])
def test_gradients_pass_by_the_scale_of_normalised_activations(
    normalise: str, centred: bool
) -> None:
    sae = replace(an_sae("topk"), normalise=normalise, centred=centred)
    found, direction = sae.encode(X), torch.randn(len(X), D)
    values = found.values.clone().requires_grad_()
    loss = (sae.reconstruct(X, found._replace(values=values)) * direction).sum()
    (expected,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(sae.slopes(found, direction, X), expected, rtol=1e-4, atol=1e-5)
    dense_slopes = sae.all_slopes(X, direction)[found.tokens, found.features]
    torch.testing.assert_close(dense_slopes, expected, rtol=1e-4, atol=1e-5)


def test_a_feature_turned_down_changes_the_loss_as_its_gradient_says() -> None:
    model, sae, layer = tiny_models.build("llama", seed=8), an_sae("topk"), 1
    before, features, slopes = losses_in_the_loop(model, layer, sae, lambda f: f)
    f, g = torch.cat(features), torch.cat(slopes)
    feature = int(((f * g).sum(0)).abs().argmax())
    for share in (0.1, 1.0):  # turned down a little, and switched off
        mask = torch.ones(sae.d_sae)
        mask[feature] = 1 - share
        after = losses_in_the_loop(model, layer, sae, lambda f, mask=mask: f * mask)[0]
        first_order = float(-(f * g).sum(0)[feature]) * share
        assert after - before == pytest.approx(first_order, rel=0.02 + 0.3 * share)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_slopes_are_products_with_decoder_rows_however_they_are_formed(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_diffs.dictionaries import sae as module

    sae, gradient = an_sae(activation), torch.randn(len(X), D)
    found = sae.encode(X)
    expected = (gradient @ sae.decoder.T)[found.tokens, found.features]
    for share, rows in ((0.0, 1 << 22), (2.0, 1 << 22), (2.0, 3 * D)):
        monkeypatch.setattr(module, "_DENSE_SHARE", share)
        monkeypatch.setattr(module, "_DECODER_ROWS", rows)
        torch.testing.assert_close(sae.slopes(found, gradient), expected, rtol=1e-5, atol=1e-6)
        expected_x = dense(found, len(X)) @ sae.decoder + sae.decoder_bias
        torch.testing.assert_close(sae.decode(found, len(X)), expected_x, rtol=1e-4, atol=1e-5)


def test_features_never_stand_dense_for_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_diffs.importance import lenses

    model, sae, sizes = tiny_models.build("llama", seed=8), an_sae("topk"), []
    real = Sae.encode
    monkeypatch.setattr(Sae, "encode", lambda self, x: (sizes.append(len(x)), real(self, x))[1])
    lens, options = SaeFeatures({1: sae}), Options(batch_size=3)
    whole = measuring.measure(Reader("tiny", model), TOKENS, 0, lens, (1,), options)
    assert sizes == [11]
    sizes.clear()
    monkeypatch.setattr(lenses, "_PRE_ACTIVATIONS", 2 * L)
    parts = measuring.measure(Reader("tiny", model), TOKENS, 0, lens, (1,), options)
    assert max(sizes) == 2
    np.testing.assert_allclose(parts.means[1], whole.means[1], rtol=1e-5, atol=1e-7)


def test_a_transcoder_reads_what_enters_the_mlp() -> None:
    model, layer = tiny_models.build("llama", seed=8), 1
    coder = Sae(*parts_of(), "topk", subtract=False, k=K, transcoder=True)
    rows = []
    handle = model.model.layers[layer].mlp.register_forward_pre_hook(
        lambda m, args: rows.append(args[0][0])
    )
    with torch.no_grad():
        for ids in IDS:
            model(input_ids=torch.tensor([ids]))
    handle.remove()
    x = torch.cat([row[start:] for row, start in zip(rows, STARTS, strict=True)])
    expected = dense(coder.encode(x), len(x)).mean(0)
    reader = Reader("tiny", model)
    found = measuring.measure(reader, TOKENS, 0, SaeFeatures({layer: coder}), (layer,), Options())
    np.testing.assert_allclose(found.means[layer][0], expected, rtol=1e-4, atol=1e-6)


def test_an_sae_of_another_width_is_refused() -> None:
    model = tiny_models.build("llama", seed=8)
    parts = (torch.zeros(9, 48), torch.zeros(9), torch.zeros(9, 48), torch.zeros(48))
    lens = SaeFeatures({1: Sae(*parts, "relu", subtract=True)})
    with pytest.raises(BadInput, match=f"{D} wide, its SAE is for 48"):
        measuring.measure(Reader("tiny", model), TOKENS, 0, lens, (1,), Options())
    parts = (torch.zeros(9, 48), torch.zeros(9), torch.zeros(9, D), torch.zeros(D))
    lens = SaeFeatures({1: Sae(*parts, "relu", subtract=False, transcoder=True)})
    with pytest.raises(BadInput, match=f"reads {D} entries, its transcoder is for 48"):
        measuring.measure(Reader("tiny", model), TOKENS, 0, lens, (1,), Options())


def test_a_feature_at_its_threshold_is_not_active() -> None:
    parts = [torch.eye(4), torch.zeros(4), torch.eye(4), torch.tensor([0.0, 0.0, 0.0, 1.0])]
    x = torch.tensor([[2.0, 1.0, 0.0, -3.0], [0.5, -1.0, 3.0, 1.0]])

    def active(sae: Sae) -> list[tuple[int, int, float]]:
        return sorted(zip(*(part.tolist() for part in sae.encode(x)), strict=True))

    plain = Sae(*parts, "relu", subtract=False)
    assert active(plain) == [(0, 0, 2), (0, 1, 1), (1, 0, 0.5), (1, 2, 3), (1, 3, 1)]
    jump = Sae(*parts, "jumprelu", subtract=False, threshold=torch.tensor(1.0))
    assert active(jump) == [(0, 0, 2), (1, 2, 3)]
    below = Sae(*parts, "jumprelu", subtract=False, threshold=torch.tensor(-1.0))
    assert active(below) == active(plain), "never below zero"
    top = Sae(*parts, "topk", subtract=False, k=3)
    assert active(top) == [(0, 0, 2), (0, 1, 1), (1, 0, 0.5), (1, 2, 3), (1, 3, 1)]
    less = Sae(*parts, "topk", subtract=True, k=3)  # the last entry is one less
    assert active(less) == [(0, 0, 2), (0, 1, 1), (1, 0, 0.5), (1, 2, 3)]
    gate = [parts[0], torch.tensor([0.0, -1.0, 0.0, 0.0]), *parts[2:]]
    magnitude = torch.stack([torch.tensor([2.0, 1, 1, 1]), torch.tensor([0.0, 0, 0, -1])])
    gated = Sae(*gate, "gated", subtract=False, magnitude=magnitude)
    # The gate of feature 1 opens above 1; the magnitude of feature 3 is one less, so never above 0.
    assert active(gated) == [(0, 0, 4), (1, 0, 1), (1, 2, 3)]
    assert (plain.d_in, plain.d_sae) == (4, 4)
    wide = Sae(torch.zeros(9, 5), torch.zeros(9), torch.zeros(9, 6), torch.zeros(6), "relu", True)
    assert (wide.d_in, wide.d_sae) == (5, 9)


def test_nothing_active_decodes_to_the_bias() -> None:
    sae = an_sae("relu")
    none = Features(*(torch.zeros(0, dtype=kind) for kind in (torch.long, torch.long, torch.float)))
    assert torch.equal(sae.decode(none, 3), sae.decoder_bias.expand(3, -1))
    assert sae.slopes(none, torch.randn(3, D)).tolist() == []


def test_an_sae_moves_whole() -> None:
    sae = an_sae("gated")
    moved = Sae(**{**vars(sae), "magnitude": torch.stack([*sae.magnitude])}).to(
        torch.device("meta")
    )
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(value.is_meta for value in tensors)
    assert (moved.activation, moved.subtract, moved.k) == ("gated", True, 0)


def test_a_transcoder_alone_reads_what_entered_the_mlp() -> None:
    """Also where other layers have autoencoders of what left it."""
    coder = an_sae("relu")
    lens = SaeFeatures({0: replace(coder, transcoder=True), 1: coder})
    assert lens.entering == "mlp_in"
    assert SaeFeatures({1: coder}).entering is None and Neurons().entering is None
    left, entered = X[:20], X[20:]
    for layer, read in ((0, entered), (1, left)):
        expected = dense(coder.encode(read), 20).double().sum(0)
        found = lens.sums(layer, left, entered, None)
        torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
