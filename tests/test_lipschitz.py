"""Step 12 on functions whose Jacobian is known, and on every family against torch's Jacobian."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

from model_diffs.activations.passes import Reader, SplitPass
from model_diffs.activations.tokens import Tokens
from model_diffs.core.script import execute
from model_diffs.core.step import load_script
from model_diffs.data.texts import Split
from model_diffs.diagnostics import jacobian, lipschitz, sensitivity
from model_diffs.models import loading as models
from model_diffs.models.anatomy import locate
from model_diffs.stats import subsample

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
FORGET = ["The river at Ava is wide.", "No.", "Seven weavers kept a ledger of their looms."]
RETAIN = ["Birds sing at dawn in the mill yard.", "A ferry.", "Bread and slow water."]
SETTINGS = sensitivity.Settings(
    epsilon=0.01, num_perturbations=10, tol=1e-3, max_iters=100, seed=42
)
IDS = [[1, 20, 30, 40, 50, 60], [1, 99, 98]]


def split_of(tokens: Tokens) -> SplitPass:
    return SplitPass(Split("forget", Path("forget.txt"), []), tokens, 16, 0, CPU)


def measured(model: Any, tokens: Tokens, settings: sensitivity.Settings = SETTINGS) -> pd.DataFrame:
    one = split_of(tokens)
    return sensitivity.measure(sensitivity.Subject.of(Reader("m", model), one), one, settings)


@pytest.fixture
def linear() -> tuple[lipschitz.Function, torch.Tensor, torch.Tensor, torch.Tensor]:
    """f mixes tokens and features linearly; x, what counts, and σ₁ of its Jacobian per text."""
    torch.manual_seed(0)
    A, M = torch.randn(5, 5), torch.randn(8, 6)
    x = torch.randn(2, 5, 8)
    counted = torch.tensor([[True] * 5, [False, True, True, True, False]])

    def f(x: torch.Tensor) -> torch.Tensor:
        return A @ x @ M

    top = torch.linalg.svdvals(M.double())[0]
    sigma = torch.stack([torch.linalg.svdvals(A[c][:, c].double())[0] * top for c in counted])
    return f, x, counted, sigma


def test_responses_of_linear_model_are_at_most_largest_singular_value(linear: Any) -> None:
    f, x, counted, sigma = linear
    deltas = lipschitz.perturbations(x, counted, 0.01, 200, [3, 4])

    def outputs(at: torch.Tensor) -> lipschitz.Output:
        return lipschitz.Output(f(at), f(at))

    few = lipschitz.respond(outputs, x, counted, deltas[:10], 4).hidden
    found = lipschitz.respond(outputs, x, counted, deltas, 64)
    many, found_variance = found.hidden, found.variance
    assert (many <= sigma * (1 + 1e-4)).all()
    assert (many >= few).all()
    assert torch.equal(found.logits, many), "the logits are the hidden states here"
    torch.testing.assert_close(found.first, f(x + deltas[0]) - f(x))
    for row, c in enumerate(counted):
        scale = float(x[row, c].norm() / f(x)[row, c].norm())
        assert float(found.hidden_scale[row]) == pytest.approx(scale, rel=1e-5)
    # Var of the output of a linear map under these perturbations, from the perturbations alone.
    variance = f(deltas.double().float()).double().var(0, correction=1).mean(-1)
    expected = torch.stack([variance[row, c].mean() for row, c in enumerate(counted)])
    np.testing.assert_allclose(found_variance, expected, rtol=1e-2)


def test_perturbations_lie_on_spheres_and_leave_padding_unchanged() -> None:
    x = torch.randn(2, 4, 16)
    counted = torch.tensor([[True] * 4, [False, True, True, False]])
    deltas = lipschitz.perturbations(x, counted, 0.05, 400, [1, 2])
    expected = 0.05 * x.norm(dim=-1) * counted
    np.testing.assert_allclose(deltas.norm(dim=-1), expected.expand(400, 2, 4), rtol=1e-5)
    assert deltas.mean(0).norm(dim=-1).max() < 0.2 * expected.max(), "no direction is preferred"
    alone = lipschitz.perturbations(x[1:, :3], counted[1:, :3], 0.05, 400, [2])
    np.testing.assert_array_equal(alone[:, 0], deltas[:, 1, :3])


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_accepts_embeddings_and_matches_jacobian_of_torch(family: str) -> None:
    model = tiny_models.build(family, seed=1)
    batch = models.pad_batch(IDS, 0, CPU)
    anatomy, mask = locate(model), batch.attention_mask.bool()
    with torch.no_grad():
        asked = model(**batch._asdict(), output_hidden_states=True)
        x = anatomy.embedding(batch.input_ids)
        fed = lipschitz.run(model, anatomy, x, batch.attention_mask)
    np.testing.assert_allclose(fed.logits[mask], asked.logits[mask], atol=1e-6)
    np.testing.assert_allclose(fed.hidden[mask], asked.hidden_states[-1][mask], atol=1e-6)

    lipschitz.make_differentiable(model)
    f = lipschitz.trunk_function(anatomy, batch.attention_mask)
    products, start = jacobian.products(f, x, mask), torch.randn(x.shape)
    (found,) = jacobian.jacobian_norms(products, start, [torch.clone], 1e-3, 100)
    assert found.converged.all() and torch.isfinite(found.value).all()
    short = lipschitz.trunk_function(anatomy, torch.ones(1, 3))
    J = torch.autograd.functional.jacobian(short, x[1:, :3])
    sigma = torch.linalg.svdvals(J.reshape(3 * x.shape[2], -1).double())[0]
    assert float(found.value[1]) == pytest.approx(float(sigma), rel=1e-3), "padding and all"


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "gemma2"])
def test_batched_rows_equal_single_texts(family: str) -> None:
    """Batched, padded and with BOS held fixed, against each text by itself in plain torch: with a
    linear head, one with a bias, and one that caps its logits."""
    model = tiny_models.build(family, seed=2)
    plain = tiny_models.build(family, seed=2).double()
    starts = [1, 0]
    tokens = Tokens(IDS, starts, np.array([0, 1]), {})
    lipschitz.make_differentiable(model)
    settings = SETTINGS._replace(epsilon=0.02, num_perturbations=4, tol=1e-5)
    rows = measured(model, tokens, settings)
    for row, ids, start in zip(rows.itertuples(), IDS, starts, strict=True):
        anatomy, mask = locate(plain), torch.ones(1, len(ids), dtype=torch.long)
        x = anatomy.embedding(torch.tensor([ids])).detach()
        counted = torch.arange(len(ids))[None] >= start
        seed = sensitivity._seed(42, "forget", row.text)
        deltas = lipschitz.perturbations(x.float(), counted, 0.02, 4, [seed]).double()
        with torch.no_grad():
            centre = lipschitz.run(plain, anatomy, x, mask)
            moved = [lipschitz.run(plain, anatomy, x + d, mask) for d in deltas]
        slopes = [
            (m.hidden - centre.hidden)[counted].norm() / d[counted].norm()
            for m, d in zip(moved, deltas, strict=True)
        ]
        assert row.lipschitz == pytest.approx(float(max(slopes)), rel=1e-3)
        scale, logits_scale = (
            float(x[counted].norm() / part[counted].norm())
            for part in (centre.hidden, centre.logits)
        )
        assert row.lipschitz_relative == pytest.approx(float(max(slopes)) * scale, rel=1e-3)
        slopes = [
            float((m.logits - centre.logits)[counted].norm() / d[counted].norm())
            for m, d in zip(moved, deltas, strict=True)
        ]
        assert row.lipschitz_logits == pytest.approx(max(slopes), rel=1e-3)
        assert row.lipschitz_logits_relative == pytest.approx(max(slopes) * logits_scale, rel=1e-3)
        variance = torch.stack([m.logits[counted] for m in moved]).var(0, correction=1).mean()
        assert row.output_variance == pytest.approx(float(variance), rel=1e-3)
        x.requires_grad_()
        loss = plain(inputs_embeds=x, labels=torch.tensor([ids])).loss
        (gradient,) = torch.autograd.grad(loss, x)
        assert row.loss == pytest.approx(loss.item(), rel=1e-5)
        assert row.gradient_norm == pytest.approx(float(gradient[counted].norm()), rel=1e-5)
        n = int(counted.sum()) * x.shape[2]
        for column, f, scaled in (
            ("jacobian_norm", lipschitz.trunk_function(anatomy, mask), scale),
            (
                "jacobian_norm_logits",
                lambda at, mask=mask: plain(inputs_embeds=at, attention_mask=mask).logits,
                logits_scale,
            ),
        ):
            J = torch.autograd.functional.jacobian(f, x.detach(), vectorize=True)[0]
            J = J[counted[0]][:, :, 0, counted[0]]
            sigma = float(torch.linalg.svdvals(J.reshape(-1, n))[0])
            assert getattr(row, column) == pytest.approx(sigma, rel=1e-4)
            assert getattr(row, f"{column}_relative") == pytest.approx(sigma * scaled, rel=1e-4)
        assert row.lipschitz <= row.jacobian_norm * 1.1
        assert row.tokens == len(ids) - start


def test_relative_response_ignores_scales_of_embeddings_and_head() -> None:
    """Embeddings twice as long and a head three times as large: absolute numbers move, relative
    ones do not. The blocks add nothing here, so that f is a norm and scales with nothing."""
    rows = []
    for embeddings, head in ((1.0, 1.0), (2.0, 3.0)):
        model = tiny_models.build("llama", seed=3)
        with torch.no_grad():
            for block in locate(model).blocks:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            model.get_input_embeddings().weight *= embeddings
            model.get_output_embeddings().weight *= head
        lipschitz.make_differentiable(model)
        tokens = Tokens(IDS, [1, 0], np.array([0, 1]), {})
        rows.append(measured(model, tokens))
    one, other = rows
    for metric in ("lipschitz", "jacobian_norm"):
        relative = [f"{metric}_relative", f"{metric}_logits_relative"]
        np.testing.assert_allclose(other[relative], one[relative], rtol=1e-3)
        np.testing.assert_allclose(other[metric], one[metric] / 2, rtol=1e-3)
        np.testing.assert_allclose(
            other[f"{metric}_logits"], one[f"{metric}_logits"] * 1.5, rtol=1e-3
        )


def test_text_of_a_single_token_has_no_gradient() -> None:
    model = tiny_models.build("gpt_neox")
    lipschitz.make_differentiable(model)
    tokens = Tokens([[5], [5, 6, 7]], [0, 0], np.array([0, 1]), {})
    rows = measured(model, tokens)
    assert rows["gradient_norm"].isna().tolist() == rows["loss"].isna().tolist() == [True, False]
    assert rows["jacobian_norm"][0] > 0


@pytest.mark.parametrize(("family", "linear"), [("gpt_neox", True), ("phi", True),
                                                ("opt", True), ("gemma2", False)])  # fmt: skip
def test_short_head_has_the_lengths_of_logits(family: str, linear: bool) -> None:
    model = tiny_models.build(family, seed=4)
    anatomy = locate(model)
    found = lipschitz.short_head(model, anatomy, IDS[0])
    assert (found is not None) == linear
    if found is None:
        return
    h = torch.randn(7, tiny_models.HIDDEN)
    logits = anatomy.head(h).detach()
    assert found.vocabulary == logits.shape[1] > found.logits(h).shape[1]
    torch.testing.assert_close(found.logits(h).norm(dim=1), logits.norm(dim=1))
    apart = (found.logits(h[1:]) - found.logits(h[:-1])).norm(dim=1)
    torch.testing.assert_close(apart, (logits[1:] - logits[:-1]).norm(dim=1))
    expected = (h @ anatomy.head.weight.T @ anatomy.head.weight).detach()
    torch.testing.assert_close(found.metric(h), expected, rtol=1e-4, atol=1e-4)


def test_derivatives_of_fewer_texts_are_those_of_all() -> None:
    """Empty cells where none were measured; whatever is measured does not depend on the others."""
    model = tiny_models.build("gpt_neox", seed=5)
    lipschitz.make_differentiable(model)
    tokens = Tokens([[1 + i, 20, 30 + i, *range(40, 45 + i)] for i in range(6)], [0] * 6,
                    np.arange(6), {})  # fmt: skip
    every = measured(model, tokens)
    few = measured(model, tokens, SETTINGS._replace(derivatives=4))
    assert every["derivatives"].tolist() == [1] * 6
    chosen = few["derivatives"] == 1
    assert np.flatnonzero(chosen).tolist() == subsample.drawn(6, 4, SETTINGS.seed)
    derived = [*sensitivity.DERIVED]
    assert len(derived) == 8 and few.loc[~chosen, derived].isna().all(axis=None)
    rest = [name for name in sensitivity.MEASURED if name not in derived]
    np.testing.assert_allclose(few[rest], every[rest], rtol=1e-4)
    found, expected = (one.loc[chosen, derived].astype(float) for one in (few, every))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    row = sensitivity.summary_rows(few, 1)[0]
    assert (row["texts"], row["texts_derivatives"]) == (6, 4)
    for metric in sensitivity.JACOBIANS:
        np.testing.assert_array_equal(every[f"{metric}_estimated"], every[metric])
        beside = few[metric.replace("jacobian_norm", "lipschitz")]
        line = np.polyfit(beside[chosen], few.loc[chosen, metric].astype(float), 1)
        assert row[f"avg_{metric}"] == pytest.approx(np.polyval(line, beside.mean()))
    change = sensitivity.changes(few, few, 1)["forget"]
    assert change["texts"] == 6 and change["texts_derivatives"] == 4


def test_samples_are_spread_evenly() -> None:
    tokens = Tokens([[i] for i in range(500)], [0] * 500, np.arange(500), {})
    sample = sensitivity.spread_sample(tokens, 64, seed=1)
    steps = np.diff(sample.documents)
    assert len(sample.ids) == 64 and set(steps) == {7, 8}
    assert [ids[0] for ids in sample.ids] == sample.documents.tolist()
    assert sensitivity.spread_sample(tokens, 0, 1) is tokens
    assert sensitivity.spread_sample(tokens, 500, 1) is tokens


def test_script_loads_the_base_once_and_pairs_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = tiny_models.save("gpt_neox", tmp_path / "a", seed=0)
    b = tiny_models.save("gpt_neox", tmp_path / "b", seed=1)
    same = tiny_models.save("gpt_neox", tmp_path / "same", seed=0)
    (tmp_path / "forget.txt").write_text("\n".join(FORGET))
    (tmp_path / "retain.txt").write_text("\n".join(RETAIN))
    loaded: list[str] = []
    load = models.load_model

    def loading(model: str, *rest: object, **more: object) -> Any:
        loaded.append(Path(model).name)
        return load(model, *rest, **more)

    monkeypatch.setattr(models, "load_model", loading)
    texts = ["--forget-text", tmp_path / "forget.txt", "--retain-text", tmp_path / "retain.txt"]
    rest = ["--outroot", tmp_path / "out", "--device", "cpu", "--num-perturbations", 3]
    rest += ["--skip-first", 0]
    arguments = ["--model-a", a, "--model-b", b, same, *texts, *rest]
    arguments += ["--lipschitz-samples", 3, "--jacobian-samples", 2]
    script = load_script(ROOT / "local_lipschitzness_analysis.py")
    execute(script, [str(word) for word in arguments])
    assert loaded == ["a", "b", "same"]
    folders = {n: tmp_path / f"out/a__to__{n}/lipschitzness" for n in ("b", "same")}
    for folder in folders.values():
        names = {"lipschitzness_summary.csv", "per_text.csv", "summary.json", "run.json"}
        assert {p.name for p in folder.iterdir()} == names | {"lipschitzness_analysis.png"}
    table = pd.read_csv(folders["b"] / "lipschitzness_summary.csv")
    assert table[["model", "data"]].to_numpy().tolist() == [
        [m, d] for m in ("a", "b") for d in ("forget", "retain")
    ]
    per_text = pd.read_csv(folders["b"] / "per_text.csv")
    part = per_text[(per_text["model"] == "a") & (per_text["data"] == "forget")]
    assert len(part) == 3
    row = table.iloc[0]
    assert row["avg_jacobian_norm"] == pytest.approx(part["jacobian_norm"].mean())
    assert part["jacobian_norm"].count() == part["derivatives"].sum() == 2
    assert row["std_lipschitz"] == pytest.approx(part["lipschitz"].std(ddof=1))
    assert row["avg_lipschitz_logits"] == pytest.approx(part["lipschitz_logits"].mean())
    assert row["avg_lipschitz_low"] <= row["avg_lipschitz"] <= row["avg_lipschitz_high"]
    still = json.loads((folders["same"] / "summary.json").read_text())["changes"]
    for split in ("forget", "retain"):
        for metric in sensitivity.METRICS:
            assert still[split][metric]["change"] == {"mean": 0, "low": 0, "high": 0}
    assert json.loads((folders["b"] / "run.json").read_text())["texts_measured"] == {
        "forget": 3,
        "retain": 3,
    }
    assert json.loads((folders["b"] / "run.json").read_text())["texts_derivatives"] == {
        "forget": 2,
        "retain": 2,
    }
