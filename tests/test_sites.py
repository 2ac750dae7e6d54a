"""Sites of a block, each against a block that is computed by hand."""

from typing import Any

import pytest
import tiny_models
import torch
from torch.nn import functional

from model_diffs.activations.passes import Reader
from model_diffs.core.errors import BadInput
from model_diffs.models import sites
from model_diffs.models.architectures import SITES

IDS = torch.tensor([[1, 20, 30, 40, 50, 60, 70]])
LAYER = 1


def watched(family: str, site: str) -> torch.Tensor:
    model, found = tiny_models.build(family, seed=8), []

    def receive(layer: int, x: torch.Tensor) -> torch.Tensor:
        assert layer == LAYER
        found.append(x)
        return x

    with torch.no_grad(), sites.watch(Reader("tiny", model).anatomy, site, (LAYER,), receive):
        model(input_ids=IDS)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    return found[0][0].float()


def attended(model: Any, block: Any, x: torch.Tensor) -> torch.Tensor:
    """The heads' outputs side by side, from the attention's own forward pass."""
    kept: list[torch.Tensor] = []
    attention = block.attn if hasattr(block, "attn") else block.self_attn
    last = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
    handle = last.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model(input_ids=IDS)
    handle.remove()
    return kept[LAYER if len(kept) > 1 else 0][0]


def rms(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def by_hand(family: str) -> dict[str, torch.Tensor]:
    """Every site of block 1, from its parameters and what entered it."""
    model = tiny_models.build(family, seed=8)
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
        x = states[LAYER][0]
        blocks = model.transformer.h if family == "gpt2" else model.model.layers
        block = blocks[LAYER]
        z = attended(model, block, x)
        if family == "gpt2":
            out = z @ block.attn.c_proj.weight + block.attn.c_proj.bias
            middle = x + out
            plain = functional.layer_norm(middle, middle.shape[-1:], eps=1e-5)
            entered = plain * block.ln_2.weight + block.ln_2.bias
            up = entered @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
            hidden = functional.gelu(up, approximate="tanh")
            mlp = hidden @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
            normed = {"attn": out, "mlp": mlp}
        else:
            gemma = family == "gemma2"
            out = z @ block.self_attn.o_proj.weight.T

            def norm(of: Any, value: torch.Tensor) -> torch.Tensor:
                return rms(value) * (1 + of.weight if gemma else of.weight)

            added = norm(block.post_attention_layernorm, out) if gemma else out
            middle = x + added
            plain = rms(middle)
            before = block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm
            entered = norm(before, middle)
            gate, up = (
                entered @ getattr(block.mlp, f"{name}_proj").weight.T for name in ("gate", "up")
            )
            act = functional.gelu(gate, approximate="tanh") if gemma else functional.silu(gate)
            hidden = act * up
            mlp = hidden @ block.mlp.down_proj.weight.T
            normed = {"attn": added}
            normed["mlp"] = norm(block.post_feedforward_layernorm, mlp) if gemma else mlp
    return {
        "resid_pre": x,
        "attn_z": z,
        "attn_out": out,
        "attn_out_after_norm": normed["attn"],
        "resid_mid": middle,
        "mlp_in": entered,
        "mlp_in_before_gain": plain,
        "mlp_hidden": hidden,
        "mlp_out": mlp,
        "mlp_out_after_norm": normed["mlp"],
        "resid_post": middle + normed["mlp"],
    }


@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt2"])
def test_every_site_is_what_a_block_computed_by_hand_has_there(family: str) -> None:
    expected = by_hand(family)
    assert set(expected) == set(SITES)
    for site, value in expected.items():
        torch.testing.assert_close(watched(family, site), value, rtol=1e-5, atol=1e-5, msg=site)
    if family == "gemma2":  # the norm after the MLP is not nothing
        ratio = expected["mlp_out_after_norm"].norm() / expected["mlp_out"].norm()
        assert ratio > 3 or ratio < 1 / 3


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_out_after_norm", "mlp_in"])
@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt2"])
def test_gradient_at_a_site_is_the_change_of_the_loss_by_a_shift_of_it(
    family: str, site: str
) -> None:
    """Also at the residual stream, part of which passes by the norm that is hooked."""
    model = tiny_models.build(family, seed=8).double()
    model.requires_grad_(False)
    anatomy = Reader("tiny", model).anatomy
    direction = torch.randn(tiny_models.HIDDEN, generator=torch.Generator().manual_seed(2)).double()

    def loss(step: float, held: list[torch.Tensor] | None = None) -> torch.Tensor:
        def receive(_: int, x: torch.Tensor) -> torch.Tensor:
            if held is not None:
                x = x if x.requires_grad else x.detach().requires_grad_()
                held.append(x)
            return x + step * direction

        with sites.watch(anatomy, site, (LAYER,), receive):
            logits = model(input_ids=IDS).logits[0, :-1]
        return functional.cross_entropy(logits, IDS[0, 1:])

    def shifted(step: float) -> torch.Tensor:
        """A shift at the hook of resid_mid would miss the stream beside the norm."""
        if site != "resid_mid":
            return loss(step)
        with sites.watch(
            anatomy, "attn_out_after_norm", (LAYER,), lambda _, x: x + step * direction
        ):
            return functional.cross_entropy(model(input_ids=IDS).logits[0, :-1], IDS[0, 1:])

    held: list[torch.Tensor] = []
    (gradient,) = torch.autograd.grad(loss(0.0, held), held)
    with torch.no_grad():
        slope = (shifted(1e-3) - shifted(-1e-3)) / 2e-3
    assert float(gradient[0].sum(0) @ direction) == pytest.approx(
        float(slope), rel=5e-3
    )  # RMSNorms compute in fp32


def test_a_parallel_block_has_no_stream_between_attention_and_mlp() -> None:
    with pytest.raises(BadInput, match="no resid_mid"):
        watched("gpt_neox", "resid_mid")
    with pytest.raises(BadInput, match="no mlp_in_before_gain"):
        watched("phi", "mlp_in_before_gain")


def test_sites_after_a_norm_exist_where_the_norm_does() -> None:
    gemma = ["model.layers.0.post_feedforward_layernorm.weight"]
    assert sites.of_model("mlp_out_after_norm", gemma) == "mlp_out_after_norm"
    assert sites.of_model("mlp_out_after_norm", ["model.layers.0.mlp.weight"]) == "mlp_out"
    assert sites.of_model("residual", gemma) == sites.of_model("residual", []) == "resid_post"
    for family, has in {"gpt2": True, "gpt_neox": True, "opt": True, "llama": False}.items():
        names = [name for name, _ in tiny_models.build(family).named_parameters()]
        assert sites.has_layer_norms(names) == has
