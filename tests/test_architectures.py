"""Every family's parts are found, in stored names and in live models."""

import pytest
import tiny_models
import torch

from model_diffs.core.errors import BadInput
from model_diffs.models import anatomy, architectures, loading

COMPONENTS = (*architectures.MLP_COMPONENTS, "qkv", "attn_out", "router", "embed", "head")


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def model(request):
    return tiny_models.build(request.param)


def test_live_model_has_all_parts(model):
    found = anatomy.locate(model)
    assert len(found.blocks) == len(found.mlps) == tiny_models.LAYERS
    assert found.embedding.num_embeddings == tiny_models.VOCABULARY
    assert found.final_norm is not None
    assert found.head.out_features == tiny_models.VOCABULARY


def test_trunk_ends_where_the_head_begins(model):
    ids = torch.arange(3, 13)[None]
    found = anatomy.locate(model)
    with torch.no_grad():
        states = found.trunk(input_ids=ids).last_hidden_state
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(states, expected)


def test_the_final_norm_makes_the_last_state_from_the_one_before_it(model):
    found = anatomy.locate(model)
    batch = loading.pad_batch([[3, 4, 5, 6], [7, 8, 9, 10]], 0, torch.device("cpu"))
    states = {}
    with torch.no_grad():
        loading.stream_states(found, batch, states.__setitem__, before_norm=True)
        assert [*states] == [*range(tiny_models.LAYERS + 2)]
        torch.testing.assert_close(
            found.final_norm(states[tiny_models.LAYERS + 1]), states[tiny_models.LAYERS]
        )
        plain = {}
        loading.stream_states(found, batch, plain.__setitem__)
    assert [*plain] == [*states][:-1] and all(torch.equal(plain[s], states[s]) for s in plain)


def test_input_module_sees_what_the_input_matrices_multiply(model):
    """The hooked input times the weight is what the matrix put out."""
    mlp = anatomy.locate(model).mlps[1]
    seen, outputs = [], {}
    handles = [mlp.input_module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    for linear in mlp.matrices.values():
        handles.append(
            linear.register_forward_hook(lambda module, _, out: outputs.__setitem__(module, out))
        )
    with torch.no_grad():
        model(input_ids=torch.arange(3, 13)[None])
    for handle in handles:
        handle.remove()
    assert (not mlp.matrices) == (model.config.model_type == "mixtral")
    for component, linear in mlp.matrices.items():
        if component == "mlp_out":
            continue
        weight = linear.weight
        weight = weight.T if model.config.model_type == "gpt2" else weight
        product = seen[0] @ weight.T
        bias = getattr(linear, "bias", None)
        product = product if bias is None else product + bias
        output = outputs[linear]
        torch.testing.assert_close(product.reshape(output.shape), output)


def test_every_stored_matrix_has_a_role_and_is_taken_once(model):
    """The matrices of all parameters hold exactly the entries of all parameters of 2 and 3 axes."""
    model_type = model.config.model_type
    taken = expected = 0
    for name, parameter in model.named_parameters():
        found = architectures.matrices(name, parameter.shape, model_type)
        for matrix in found:
            assert tuple(matrix.take(parameter).shape) == matrix.shape
            assert matrix.component in COMPONENTS
            assert (matrix.layer == -1) == (matrix.group == "other")
        taken += sum(matrix.take(parameter).numel() for matrix in found)
        expected += parameter.numel() if parameter.ndim >= 2 else 0
    assert taken == expected


def test_stacked_experts_are_split_into_the_rows_that_are_multiplied():
    """Gate rows come first: the expert's output equals act(gate x) * up x through down."""
    model = tiny_models.build("mixtral")
    experts = model.model.layers[0].mlp.experts
    prefix = "model.layers.0.mlp.experts"
    weights = {}
    for leaf in ("gate_up_proj", "down_proj"):
        stacked = getattr(experts, leaf)
        for matrix in architectures.matrices(f"{prefix}.{leaf}", stacked.shape, "mixtral"):
            weights[matrix.expert, matrix.component] = matrix.take(stacked)
    x = torch.randn(5, tiny_models.HIDDEN)
    chosen, weight = torch.full((5, 1), 2), torch.ones(5, 1)
    with torch.no_grad():
        got = experts(x, chosen, weight)
        gate, up, down = (weights[2, c] for c in ("mlp_gate", "mlp_in", "mlp_out"))
        expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt_neox.layers.11.attention.query_key_value.weight", (11, "attn", "qkv")),
        ("transformer.h.3.attn.c_proj.weight", (3, "attn", "attn_out")),
        ("h.3.mlp.c_proj.weight", (3, "mlp", "mlp_out")),
        ("model.layers.0.block_sparse_moe.gate.weight", (0, "mlp", "router")),
        ("model.decoder.layers.4.fc1.weight", (4, "mlp", "mlp_in")),
        ("model.language_model.layers.7.mlp.gate_proj.weight", (7, "mlp", "mlp_gate")),
        ("lm_head.weight", (-1, "other", "head")),
    ],
)
def test_role_of_a_matrix_follows_from_its_name(name, expected):
    assert architectures.describe_parameter(name) == expected


def test_gpt2_matrices_are_transposed_but_not_its_embedding():
    (matrix,) = architectures.matrices("h.0.mlp.c_fc.weight", (32, 128), "gpt2")
    assert matrix.shape == (128, 32)
    (embedding,) = architectures.matrices("wte.weight", (50257, 32), "gpt2")
    assert embedding.shape == (50257, 32)


def test_buffers_of_old_checkpoints_are_not_matrices():
    for name in ("gpt_neox.layers.0.attention.bias", "h.0.attn.bias"):
        assert architectures.matrices(name, (1, 1, 8, 8), "gpt2") == []


def test_biases_of_attention_are_weights_and_masks_are_not():
    assert architectures.is_weight("transformer.h.0.attn.c_attn.bias")
    assert not architectures.is_weight("transformer.h.0.attn.bias")
    assert not architectures.is_weight("gpt_neox.layers.0.attention.masked_bias")


def test_unknown_architecture_error_names_what_was_looked_for():
    with pytest.raises(BadInput, match=r"mystery.*looked for"):
        architectures.describe_parameter("model.layers.0.mystery.weight")
    model = tiny_models.build("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(BadInput, match="ModuleList"):
        anatomy.locate(model)
