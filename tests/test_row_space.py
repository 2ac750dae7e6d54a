"""Step 11 against planted changes, and against a loop over tokens with LAPACK in fp64."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_diffs.core.script import execute
from model_diffs.core.step import load_script
from model_diffs.diagnostics import row_space
from model_diffs.models import loading as models
from model_diffs.models.anatomy import locate
from model_diffs.models.architectures import Matrix
from model_diffs.models.checkpoints import Checkpoint

ROOT = Path(__file__).parent.parent
FORGET = ["The river at Ava is wide.", "No.", "Seven weavers kept a long ledger of their looms."]
RETAIN = ["Birds sing at dawn in the mill yard.", "A ferry.", "Bread, salt and slow water."]
DENSE = [family for family in tiny_models.FAMILIES if family != "mixtral"]


def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *more: object, figure: bool = False
) -> Path:
    """Run the script on FORGET and RETAIN; the folder with its results."""
    (tmp_path / "forget.txt").write_text("\n".join(FORGET))
    (tmp_path / "retain.txt").write_text("\n".join(RETAIN))
    texts = ["--forget-text", tmp_path / "forget.txt", "--retain-text", tmp_path / "retain.txt"]
    where = ["--outroot", tmp_path / "outputs", "--device", "cpu"]
    rest = [*texts, *where, "--batch-size", 2, "--skip-first", 0, *more]
    script: Any = load_script(ROOT / "row_space_projection_analysis.py")
    if not figure:
        script.draw = lambda *_: None
    execute(script, [str(word) for word in rest])
    return tmp_path / "outputs"


def inputs_of(folder: Path, module: str, texts: list[str], family: str) -> torch.Tensor:
    """Inputs of a module at the tokens that count, from single unpadded texts, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kept: list[torch.Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        kept.append(args[0].reshape(-1, args[0].shape[-1]))

    model.get_submodule(module).register_forward_pre_hook(keep)
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            model(torch.tensor([ids]))
        kept[-1] = kept[-1][int(family in tiny_models.WITH_BOS) :]
    return torch.cat(kept)


def edit(folder: Path, name: str, dW: torch.Tensor) -> None:
    """Add dW, as stored, to one tensor of a saved model."""
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] + dW.to(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", DENSE)
def test_table_equals_loop_over_tokens(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = tiny_models.save(family, tmp_path / "a", seed=0)
    b = tiny_models.save(family, tmp_path / "b", seed=1)
    out = run(monkeypatch, tmp_path, "--model-a", a, "--model-b", b, "--top-k", 5)
    table = pd.read_csv(out / "a__to__b/row_space_projection/projection_metrics.csv")
    single = pd.read_csv(out / "a__to__b/row_space_projection/per_text.csv")
    stored_a, stored_b = Checkpoint.open(str(a)), Checkpoint.open(str(b))
    every = [m for m in stored_a.matrices() if m.component.startswith("mlp_")]
    assert table["name"].tolist() == [m.name for m in every]
    for matrix in [m for m in every if m.layer == 1]:
        row = table[table["name"] == matrix.name].iloc[0]
        W, W_B = (matrix.take(c.tensor(matrix.tensor)).double() for c in (stored_a, stored_b))
        dW = (W_B.float() - W.float()).double()
        V = torch.linalg.svd(dW)[2][:5]
        assert row["k"] == 5
        assert row["random_proj_ratio"] == pytest.approx(math.sqrt(5 / W.shape[1]), rel=1e-12)
        for split, texts in (("forget", FORGET), ("retain", RETAIN)):
            x = inputs_of(a, matrix.name.removesuffix(".weight"), texts, family).double()
            x = x[x.norm(dim=1) > 0]
            expected = {
                "proj_ratio": ((V @ x.T).norm(dim=0) / x.norm(dim=1)).mean(),
                "proj_norm": (V @ x.T).norm(dim=0).mean(),
                "effect": ((dW @ x.T).norm(dim=0) / (W @ x.T).norm(dim=0)).mean(),
            }
            for column, value in expected.items():
                assert row[f"{split}_{column}"] == pytest.approx(float(value), rel=1e-5), column
            assert row[f"{split}_tokens"] == len(x)
        ratio = row["forget_proj_ratio"] / row["retain_proj_ratio"]
        assert row["selectivity_ratio"] == pytest.approx(ratio)
        assert row["projection_diff"] == pytest.approx(
            row["forget_proj_ratio"] - row["retain_proj_ratio"]
        )
        one = single[(single["name"] == matrix.name) & (single["split"] == "retain")]
        assert one["text"].tolist() == [0, 1, 2]
        for column, count in (("proj_ratio", "tokens"), ("effect", "effect_tokens")):
            mean = one[f"{column}_sum"].sum() / one[count].sum()
            assert row[f"retain_{column}"] == pytest.approx(mean, rel=1e-12)
        for column in ("forget_proj_ratio", "selectivity_ratio", "effect_selectivity"):
            assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]


def test_inputs_of_experts_are_those_of_their_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = tiny_models.save("mixtral", tmp_path / "a", seed=0)
    b = tiny_models.save("mixtral", tmp_path / "b", seed=1)
    out = run(monkeypatch, tmp_path, "--model-a", a, "--model-b", b, "--top-k", 5)
    folder = out / "a__to__b/row_space_projection"
    table = pd.read_csv(folder / "projection_metrics.csv")
    experts = 4
    assert len(table) == tiny_models.LAYERS * experts * 2
    counts = json.loads((folder / "summary.json").read_text())
    assert counts["expert_output_matrices_left_out"] == tiny_models.LAYERS * experts
    stored = [Checkpoint.open(str(folder)) for folder in (a, b)]
    model = AutoModelForCausalLM.from_pretrained(a)
    block = next(n for n, m in model.named_modules() if m is locate(model).mlps[2].input_module)
    x = inputs_of(a, block, FORGET, "mixtral").double()
    for matrix in [m for m in stored[0].matrices() if m.component in ("mlp_in", "mlp_gate")][-3:]:
        W, W_B = (matrix.take(c.tensor(matrix.tensor)).double() for c in stored)
        dW = (W_B.float() - W.float()).double()
        V = torch.linalg.svd(dW)[2][:5]
        row = table[table["name"] == matrix.name].iloc[0]
        ratio = ((V @ x.T).norm(dim=0) / x.norm(dim=1)).mean()
        effect = ((dW @ x.T).norm(dim=0) / (W @ x.T).norm(dim=0)).mean()
        assert row["forget_proj_ratio"] == pytest.approx(float(ratio), rel=1e-5)
        assert row["forget_effect"] == pytest.approx(float(effect), rel=1e-5)


def test_change_aimed_at_forget_inputs_projects_only_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dW's row space is spanned by the inputs of one matrix on one forget text."""
    a = tiny_models.save("gpt2", tmp_path / "a", intermediate_size=64)
    b = tiny_models.save("gpt2", tmp_path / "b", intermediate_size=64)
    name = "transformer.h.1.mlp.c_proj"
    monkeypatch.setattr(sys.modules[__name__], "FORGET", ["weave"])
    x = inputs_of(a, name, FORGET, "gpt2")
    V = torch.linalg.qr(x.T.double())[0]  # [in, tokens]
    edit(b, f"{name}.weight", (V @ torch.randn(V.shape[1], 32).double()).float())
    out = run(monkeypatch, tmp_path, "--model-a", a, "--model-b", b)
    table = pd.read_csv(out / "a__to__b/row_space_projection/projection_metrics.csv")
    (row,) = table.to_dict("records")
    assert (row["layer"], row["weight_type"], row["k"]) == (1, "mlp_out", V.shape[1])
    assert row["forget_proj_ratio"] == pytest.approx(1, abs=1e-5)
    assert row["retain_proj_ratio"] < 0.9
    assert row["effect_selectivity"] > 1


def test_effects_leave_out_positions_whose_prefix_is_in_both_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dW reads the last token of one forget text; a common beginning would hide half of that."""
    a = tiny_models.save("gpt2", tmp_path / "a", intermediate_size=64)
    b = tiny_models.save("gpt2", tmp_path / "b", intermediate_size=64)
    name = "transformer.h.1.mlp.c_proj"
    texts = {"forget": ["We weave a", "We sow"], "retain": ["We weave b", "Birds", "We weave"]}
    monkeypatch.setattr(sys.modules[__name__], "FORGET", texts["forget"])
    monkeypatch.setattr(sys.modules[__name__], "RETAIN", texts["retain"])
    dW = torch.linalg.qr(inputs_of(a, name, ["We weave a"], "gpt2").T.double())[0]
    dW = dW @ torch.randn(dW.shape[1], 32).double()
    edit(b, f"{name}.weight", dW.float())
    out = run(monkeypatch, tmp_path, "--model-a", a, "--model-b", b)
    folder = out / "a__to__b/row_space_projection"
    row = pd.read_csv(folder / "projection_metrics.csv").iloc[0]

    tokenizer = AutoTokenizer.from_pretrained(a)
    ids = {split: [tokenizer(text)["input_ids"] for text in of] for split, of in texts.items()}
    W = load_file(a / "model.safetensors")[f"{name}.weight"].double()
    counts = json.loads((folder / "summary.json").read_text())
    left_out = counts["effect_positions_with_prefix_in_the_other_split"]
    for split, other in (("forget", "retain"), ("retain", "forget")):
        begun = {tuple(one[: i + 1]) for one in ids[other] for i in range(len(one))}
        effects, dropped = [], 0
        for text, one in zip(texts[split], ids[split], strict=True):
            for i, x in enumerate(inputs_of(a, name, [text], "gpt2").double()):
                if tuple(one[: i + 1]) in begun:
                    dropped += 1
                else:
                    effects.append(float((x @ dW).norm() / (x @ W).norm()))
        assert dropped > 0 and effects
        total = sum(map(len, ids[split]))
        assert left_out[split] == {"tokens": total, "left_out": dropped}
        assert (row[f"{split}_tokens"], row[f"{split}_effect_tokens"]) == (total, len(effects))
        assert row[f"{split}_effect"] == pytest.approx(np.mean(effects), rel=1e-4)
    assert row["effect_selectivity"] == pytest.approx(row["forget_effect"] / row["retain_effect"])


def test_splits_that_begin_alike_throughout_have_no_effect_selectivity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every retain text begins a forget text: there is no input of retain texts alone."""
    a = tiny_models.save("gpt_neox", tmp_path / "a", seed=0)
    b = tiny_models.save("gpt_neox", tmp_path / "b", seed=1)
    monkeypatch.setattr(sys.modules[__name__], "RETAIN", [text[:-1] for text in FORGET])
    out = run(monkeypatch, tmp_path, "--model-a", a, "--model-b", b)
    table = pd.read_csv(out / "a__to__b/row_space_projection/projection_metrics.csv")
    assert table[["retain_effect", "effect_selectivity"]].isna().all(axis=None)
    assert table["selectivity_ratio"].notna().all() and (table["retain_effect_tokens"] == 0).all()


def test_random_inputs_have_the_random_projection_ratio() -> None:
    torch.manual_seed(0)
    d, k = 200, 12
    reads = row_space.reads_of(torch.randn(50, k) @ torch.randn(k, d), 20, torch.float32)
    assert reads is not None and len(reads.V_k) == k, "never more than the rank of dW"
    x = torch.randn(4000, d)
    ratios = row_space.token_values(x, x, reads)[:, row_space.RATIO]
    assert float(ratios.square().mean().sqrt()) == pytest.approx(math.sqrt(k / d), rel=0.02)


@pytest.mark.parametrize("rank", [None, 9])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_R_gives_the_norm_of_dW_x(shape: tuple[int, int], rank: int | None) -> None:
    dW = torch.randn(shape)
    if rank:
        dW = torch.randn(shape[0], rank) @ torch.randn(rank, shape[1])
    reads = row_space.reads_of(dW, 7, torch.float32)
    assert reads is not None and len(reads.R) == (rank or min(shape))
    x = torch.randn(shape[1], 9)
    np.testing.assert_allclose((reads.R @ x).norm(dim=0), (dW @ x).norm(dim=0), rtol=1e-5)
    V = torch.linalg.svd(dW.double())[2][:7]
    np.testing.assert_allclose((reads.V_k.double().T @ reads.V_k.double()), V.T @ V, atol=1e-6)


def test_singular_values_that_are_negligible_beside_the_largest_have_no_row() -> None:
    for sigma, rows in (
        ([1e3, 5e-4, 0.0], 1),
        ([1e3, 2e-3, 5e-4], 2),
        ([1e-3, 5e-7, 1e-8], 3),
        ([1e-3, 0.0, 0.0], 1),
    ):
        reads = row_space.reads_of(torch.diag(torch.tensor(sigma)), 3, torch.float32)
        assert reads is not None and reads.R.shape == (rows, 3)


def test_weights_are_kept_of_experts_alone(tmp_path: Path) -> None:
    """Of other matrices the module itself forms W x."""
    for family, kept in (("llama", False), ("mixtral", True)):
        folders = [tiny_models.save(family, tmp_path / f"{family}{i}", seed=i) for i in range(2)]
        base, other = (Checkpoint.open(str(folder)) for folder in folders)
        found = row_space.read_changes(base, [other], 2, torch.device("cpu"), torch.float32)
        assert found.targets and all((t.W is not None) == kept for t in found.targets)


def test_the_product_of_a_module_is_without_bias_and_of_the_matrix_alone() -> None:
    """Of two matrices that are stored as one, each has some of the outputs."""
    matrix = Matrix("gate", "gate_up", 0, "mlp", "mlp_gate", (3, 4), rows=(2, 5))
    module, x = nn.Linear(4, 6), torch.randn(7, 4)
    found = row_space._product(module, matrix, module(x))
    torch.testing.assert_close(found, x @ module.weight[2:5].T)
    found = row_space._product(module, replace(matrix, rows=None), module(x))
    torch.testing.assert_close(found, x @ module.weight.T)
    assert row_space._product(nn.Module(), replace(matrix, rows=None), x) is x


class Part(NamedTuple):
    """In place of a tensor: its size and where it is."""

    nbytes: int
    device: str = "cpu"

    def to(self, device: torch.device) -> "Part":
        return self._replace(device=device.type)


@pytest.mark.parametrize(("free", "device", "moved"), [
    (120, "cuda", True), (119, "cuda", False), (1000, "cpu", False),
])  # fmt: skip
def test_changes_move_to_a_gpu_where_half_of_its_memory_holds_them(
    free: int, device: str, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**6))
    matrix = Matrix("m", "m", 0, "mlp", "mlp_in", (2, 2))
    given: list[Any] = [row_space.Reads(*map(Part, sizes)) for sizes in ((5, 5), (8, 12))]
    weight: Any = Part(30)
    targets = [
        row_space.Target(matrix, {"b": given[0]}, weight),
        row_space.Target(matrix, {"b": given[1]}),
    ]
    row_space.move_to_device(targets, torch.device(device))
    held: list[Any] = [part for target in targets for part in target.reads["b"]]
    place = "cuda" if moved else "cpu"
    assert [(part.nbytes, part.device) for part in held] == [(n, place) for n in (5, 5, 8, 12)]
    assert weight._replace(device=place) == targets[0].W and targets[1].W is None


def test_zero_inputs_do_not_count() -> None:
    reads = row_space.reads_of(torch.randn(6, 4), 2, torch.float32)
    assert reads is not None
    x = torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4]])
    values = row_space.token_values(x, x @ torch.randn(4, 6), reads)
    assert torch.isfinite(values).all()
    assert values[:, row_space.TOKENS].tolist() == [0, 1]
    assert not values[0].any()


def test_base_is_passed_once_for_all_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = tiny_models.save("gpt_neox", tmp_path / "a", seed=0)
    b = tiny_models.save("gpt_neox", tmp_path / "b", seed=1)
    same = tiny_models.save("gpt_neox", tmp_path / "same", seed=0)
    c = tiny_models.save("gpt_neox", tmp_path / "c", seed=0)
    edit(c, "gpt_neox.layers.2.mlp.dense_4h_to_h.weight", torch.randn(32, 1) @ torch.randn(1, 64))
    texts: list[int] = []
    loaded: list[str] = []
    whole, load = models.stream_states, models.load_model

    def counting(anatomy: object, batch: models.Batch, *rest: object) -> None:
        texts.append(len(batch.input_ids))
        whole(anatomy, batch, *rest)

    def loading(model: str, *rest: object) -> nn.Module:
        loaded.append(model)
        return load(model, *rest)

    monkeypatch.setattr(models, "stream_states", counting)
    monkeypatch.setattr(models, "load_model", loading)
    out = run(monkeypatch, tmp_path, "--model-a", a, "--model-b", b, c, same, figure=True)
    assert sum(texts) == len(FORGET) + len(RETAIN)
    assert loaded == [str(a)]

    rows = {
        label: pd.read_csv(out / f"a__to__{label}/row_space_projection/projection_metrics.csv")
        for label in ("b", "c", "same")
    }
    assert [len(rows[label]) for label in ("b", "c", "same")] == [6, 1, 0]
    assert rows["c"]["k"].tolist() == [1]
    for label, unchanged in (("b", 0), ("c", 5), ("same", 6)):
        folder = out / f"a__to__{label}/row_space_projection"
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["matrices_unchanged"] == unchanged
        assert (folder / "row_space_projection.png").exists() == (unchanged < 6)
        assert (folder / "run.json").exists()
