"""Weights held in half precision give the numbers of a model that is loaded in fp32."""

from pathlib import Path

import pytest
import tiny_models
import torch

from model_diffs.models import held, loading

CPU = torch.device("cpu")


def pair(folder: Path, family: str, dtype: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same model loaded in fp32, and held in the dtype that it is stored in."""
    name = str(tiny_models.save(family, folder / family, dtype=dtype))
    load = loading.load_model
    return load(name, CPU, torch.float32), load(name, CPU, torch.float32, held=True)


def bytes_of(model: torch.nn.Module) -> int:
    return sum(one.nbytes for one in model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_logits_are_the_same_bits(tmp_path: Path, family: str, dtype: str) -> None:
    wide, narrow = pair(tmp_path, family, dtype)
    ids = torch.randint(3, 200, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.no_grad():
        expected, found = (m(ids, attention_mask=mask).logits for m in (wide, narrow))
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    # Gemma's scaled embeddings come with a constant that half precision rounds.
    assert (bytes_of(narrow) < bytes_of(wide)) != family.startswith("gemma")
    if family in ("gpt_neox", "llama", "qwen2", "mistral"):
        assert bytes_of(narrow) < 0.55 * bytes_of(wide)


def test_first_and_second_derivatives_are_those_of_the_wide_model(tmp_path: Path) -> None:
    """∂(Jᵀu)/∂u v = J v is what step 12 asks for."""
    found = []
    for model in pair(tmp_path, "gpt_neox", "bfloat16"):
        model.set_attn_implementation("eager")  # type: ignore[operator]
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 5, tiny_models.HIDDEN, generator=generator).requires_grad_()
        output = model(inputs_embeds=x).logits
        u = torch.randn(output.shape, generator=generator).requires_grad_()
        (pulled,) = torch.autograd.grad(output, x, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, torch.ones_like(x))
        found.append((pulled.detach(), pushed))
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_what_is_trained_is_wide_and_the_rest_stays(tmp_path: Path) -> None:
    name = str(tiny_models.save("gpt_neox", tmp_path / "model", dtype="bfloat16"))
    model = loading.load_model(name, CPU, torch.bfloat16)
    model.requires_grad_(False)
    trained = model.get_submodule("gpt_neox.layers.1").requires_grad_()
    held.hold(model)
    assert {one.dtype for one in trained.parameters()} == {torch.float32}
    inside = model.get_submodule("gpt_neox.layers.0.mlp.dense_h_to_4h")
    assert inside.weight.dtype == torch.bfloat16 and inside.bias.dtype == torch.float32
    ids = torch.arange(3, 20)[None]
    loss = model(ids, labels=ids).loss
    loss.backward()
    grads = {name for name, one in model.named_parameters() if one.grad is not None}
    assert grads == {name for name, one in model.named_parameters() if ".layers.1." in name}
    wide = loading.load_model(name, CPU, torch.float32).requires_grad_(False)
    wide.get_submodule("gpt_neox.layers.1").requires_grad_()
    wide(ids, labels=ids).loss.backward()
    for name, one in wide.named_parameters():
        if name in grads:
            own = model.get_parameter(name).grad
            assert own is not None and one.grad is not None
            torch.testing.assert_close(own, one.grad, rtol=1e-5, atol=1e-7)


def test_nothing_is_held_of_a_model_that_is_stored_wide(tmp_path: Path) -> None:
    wide, same = pair(tmp_path, "gpt_neox", "float32")
    assert not held.holds(same) and bytes_of(same) == bytes_of(wide)


def test_a_widened_layer_is_a_plain_one_again(tmp_path: Path) -> None:
    _, narrow = pair(tmp_path, "llama", "bfloat16")
    assert held.holds(narrow)
    held.widen(narrow)
    assert not held.holds(narrow)
    assert {one.dtype for one in narrow.parameters()} == {torch.float32}
