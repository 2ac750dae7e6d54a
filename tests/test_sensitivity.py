"""Step 12's numbers on functions that are written down here, and its tables by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

from model_diffs.activations.passes import Reader, SplitPass
from model_diffs.activations.tokens import Tokens
from model_diffs.core.errors import BadInput
from model_diffs.data.texts import Split
from model_diffs.diagnostics import jacobian, lipschitz, sensitivity
from model_diffs.models import loading
from model_diffs.stats.intervals import mean_interval, ratio_interval

COUNTED = torch.tensor([[True, True, False], [False, True, True]])


def outputs(x: torch.Tensor) -> lipschitz.Output:
    """Something curved, of another width for the logits; every position is large where it is."""
    return lipschitz.Output(x.square(), torch.cat([x**3, x.sin()], -1))


def test_responses_equal_a_loop_over_texts_and_perturbations() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)
    deltas = 0.3 * torch.randn(5, 2, 3, 4, generator=generator) * COUNTED[..., None]
    found = lipschitz.respond(outputs, x, COUNTED, deltas, per_pass=2)
    for row in (0, 1):
        c = COUNTED[row]
        centre = outputs(x[row])
        slopes: list[list[float]] = [[], []]
        moved = [outputs(x[row] + d[row]) for d in deltas]
        for one, d in zip(moved, deltas, strict=True):
            for part, (after, before) in enumerate(zip(one, centre, strict=True)):
                slopes[part].append(float((after - before)[c].norm() / d[row][c].norm()))
        assert float(found.hidden[row]) == pytest.approx(max(slopes[0]), rel=1e-5)
        assert float(found.logits[row]) == pytest.approx(max(slopes[1]), rel=1e-5)
        logits = torch.stack([one.logits[c] for one in moved])
        assert float(found.variance[row]) == pytest.approx(float(logits.var(0).mean()), rel=1e-4)
        size = float(x[row][c].norm())
        assert float(found.hidden_scale[row]) == pytest.approx(
            size / float(centre.hidden[c].norm())
        )
        assert float(found.logits_scale[row]) == pytest.approx(
            size / float(centre.logits[c].norm())
        )
    whole = lipschitz.respond(outputs, x, COUNTED, deltas, per_pass=64)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_variances_of_logits_in_half_precision_are_summed_in_fp32() -> None:
    """Of three texts, the last the same as the first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)[[0, 1, 0]]
    deltas = (0.3 * torch.randn(7, 2, 3, 4, generator=generator) * COUNTED[..., None])[:, [0, 1, 0]]
    counted = COUNTED[[0, 1, 0]]

    def half(x: torch.Tensor) -> lipschitz.Output:
        return outputs(x)._replace(logits=outputs(x).logits.bfloat16())

    found = lipschitz.respond(half, x, counted, deltas, per_pass=3)
    for part in found[:-1]:
        assert part.shape == (3,) and part[0] == part[2] != part[1]
    for row in range(3):
        moved = torch.stack([half(x[row] + d[row]).logits[counted[row]] for d in deltas])
        expected = float(moved.double().var(0).mean())
        assert float(found.variance[row]) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_of_each_texts_own_mean_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 5, generator=generator)
    batch = loading.pad_batch([[1, 2, 3, 4], [4, 0], [2]], 0, torch.device("cpu"))
    counted = torch.tensor([[False, True, True, True], [True, True, False, False],
                            [True, False, False, False]])  # fmt: skip
    norm, loss = lipschitz.gradient_norms(lambda at: at.cumsum(1), x, batch, counted)
    for row, ids in enumerate(([1, 2, 3, 4], [4, 0])):
        leaf = x[row, : len(ids)].clone().requires_grad_()
        logits = leaf.cumsum(0)[:-1]
        mean = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
        (gradient,) = torch.autograd.grad(mean, leaf)
        expected = gradient[counted[row, : len(ids)]].norm()
        assert float(norm[row]) == pytest.approx(float(expected), rel=1e-5)
        assert float(loss[row]) == pytest.approx(mean.item(), rel=1e-5)
    assert math.isnan(norm[2]) and math.isnan(loss[2])
    assert not loss.requires_grad


def test_a_sample_is_every_so_many_documents_from_a_seeded_start() -> None:
    tokens = Tokens([[i] * (i + 1) for i in range(10)], [*range(10)], np.arange(5, 15), {})
    starts = set()
    for seed in range(20):
        found = sensitivity.spread_sample(tokens, 5, seed)
        rows = [len(ids) - 1 for ids in found.ids]
        assert np.diff(rows).tolist() == [2] * 4 and rows[0] in (0, 1)
        assert found.starts == rows and found.documents.tolist() == [row + 5 for row in rows]
        starts.add(rows[0])
    assert starts == {0, 1}
    assert len(sensitivity.spread_sample(tokens, 9, 0).ids) == 9
    assert len(sensitivity.spread_sample(tokens, 1, 0).ids) == 1
    assert sensitivity.spread_sample(tokens, 0, 0) is tokens
    assert sensitivity.spread_sample(tokens, 10, 0) is tokens


def test_documents_have_seeds_of_their_own() -> None:
    seeds = {
        sensitivity._seed(seed, split, document)
        for seed in (1, 2)
        for split in ("forget", "retain")
        for document in range(5)
    }
    assert len(seeds) == 20 and max(seeds) < 2**48 and max(seeds) > 2**40
    assert sensitivity._seed(1, "forget", 3) == sensitivity._seed(1, "forget", 3)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def texts_of(model: str, seed: int, count: int = 12) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for data in ("retain", "forget"):
        for text in range(count):
            numbers = dict(zip(sensitivity.METRICS, draw.uniform(1, 2, 10), strict=True))
            places = {"model": model, "data": data, "text": text, "tokens": text + 1}
            rows.append({**places, "derivatives": 1, **numbers})
    table = pd.DataFrame(rows)
    for metric in sensitivity.JACOBIANS:
        table[f"{metric}_estimated"] = table[metric]
    table.loc[table["text"] == 3, "gradient_norm"] = np.nan
    return table


def test_summary_rows_by_hand() -> None:
    table = pd.concat([texts_of("b", 0), texts_of("a", 1)])
    rows = sensitivity.summary_rows(table, 4)
    keys = [(row["model"], row["data"]) for row in rows]
    assert keys == [("b", "retain"), ("b", "forget"), ("a", "retain"), ("a", "forget")]
    part = table[(table["model"] == "b") & (table["data"] == "forget")]
    row = rows[1]
    assert (row["texts"], row["tokens"]) == (12, 78)
    assert {*row} == {*sensitivity.COLUMNS}
    for metric in sensitivity.METRICS:
        values = part[metric].dropna().to_numpy()
        assert len(values) == (11 if metric == "gradient_norm" else 12)
        cells = [row[f"avg_{metric}{end}"] for end in ("", "_low", "_high")]
        np.testing.assert_allclose(cells, mean_interval(values, 4))
        spread = math.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1))
        assert row[f"std_{metric}"] == pytest.approx(spread)
    two = sensitivity.summary_rows(part[part["text"] < 2], 4)[0]
    apart = part["lipschitz"].iloc[1] - part["lipschitz"].iloc[0]
    assert two["std_lipschitz"] == pytest.approx(abs(apart) / math.sqrt(2))
    single = sensitivity.summary_rows(part[part["text"] == 3], 4)[0]
    assert single["std_lipschitz"] is None and single["avg_lipschitz"] > 0
    assert "avg_gradient_norm" not in single


def test_changes_are_paired_by_text() -> None:
    a, b = texts_of("a", 0), texts_of("b", 1).sample(frac=1, random_state=0)
    b.loc[(b["text"] == 7) & (b["data"] == "forget"), "output_variance"] = np.nan
    found = sensitivity.changes(a, b, 4)
    assert [*found] == ["retain", "forget"]
    assert found["forget"]["texts"] == 12
    for metric in sensitivity.METRICS:
        left, right = (
            one[one["data"] == "forget"].sort_values("text")[metric].to_numpy() for one in (a, b)
        )
        both = ~np.isnan(left) & ~np.isnan(right)
        change, before = (right - left)[both], left[both]
        for name, interval in (
            ("change", mean_interval(change, 4)),
            ("relative", ratio_interval(change, before, 4)),
        ):
            cells = found["forget"][metric][name]
            assert [*cells] == ["mean", "low", "high"]
            np.testing.assert_allclose([*cells.values()], interval)
    a.loc[0, "lipschitz"] = 0.0
    found = sensitivity.changes(a, b, 4)
    assert "relative" not in found["retain"]["lipschitz"]
    assert "relative" in found["forget"]["lipschitz"]
    none = a.assign(gradient_norm=np.nan)
    found = sensitivity.changes(none, b, 4)["forget"]
    assert [*found] == [
        "texts",
        "texts_derivatives",
        *(one for one in sensitivity.METRICS if one != "gradient_norm"),
    ]
    tiny, negative = a["jacobian_norm"] / 9, a["jacobian_norm"] - 1.05
    for base, given in ((tiny, True), (negative, True), (-tiny, False)):
        found = sensitivity.changes(a.assign(jacobian_norm_estimated=base), b, 4)["forget"]
        assert ("relative" in found["jacobian_norm"]) == given, "of means, which are above 0"


# ── a model ───────────────────────────────────────────────────────────────────────────────────────


def measured(model: Any) -> pd.DataFrame:
    tokens = Tokens([[5, 6, 7], [8, 9]], [0, 0], np.array([0, 1]), {})
    split = SplitPass(Split("forget", Path("f.txt"), []), tokens, 16, 0, torch.device("cpu"))
    settings = sensitivity.Settings(0.01, 2, 1e-3, 50, 42)
    subject = sensitivity.Subject.of(Reader("tiny", model), split)
    return sensitivity.measure(subject, split, settings)


@pytest.mark.parametrize("apart", [None, 0, 1])
def test_a_text_has_converged_where_states_and_logits_have(
    apart: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = tiny_models.build("gpt_neox"), []
    lipschitz.make_differentiable(model)
    norms = jacobian.jacobian_norms

    def not_in_one(*given: Any) -> list[jacobian.JacobianNorm]:
        calls.append(len(calls))
        found = norms(*given)
        return [
            one._replace(converged=one.converged & (metric != apart))
            for metric, one in enumerate(found)
        ]

    monkeypatch.setattr(jacobian, "jacobian_norms", not_in_one)
    assert measured(model)["jacobian_converged"].tolist() == [apart is None] * 2
    assert calls == [0], "both norms are sought in one space"


def test_a_model_is_measured_frozen_and_without_a_hook_left() -> None:
    model = tiny_models.build("gpt_neox")
    lipschitz.make_differentiable(model)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert measured(model)["lipschitz"].gt(0).all()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("experts", [None, False, True])
def test_only_models_with_experts_are_asked_for_other_experts(experts: bool | None) -> None:
    called: list[tuple[str, Any]] = []
    model = SimpleNamespace(
        requires_grad_=lambda value: called.append(("gradients", value)),
        set_attn_implementation=lambda name: called.append(("attention", name)),
    )
    if experts is not None:
        model.set_experts_implementation = lambda name: called.append(("experts", name))
        model._can_set_experts_implementation = lambda: experts
    lipschitz.make_differentiable(model)
    asked = [("experts", "eager")] if experts else []
    assert called == [("gradients", False), ("attention", "eager"), *asked]


def test_an_embedding_of_zero_is_refused() -> None:
    model = tiny_models.build("gpt_neox")
    lipschitz.make_differentiable(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[6] = 0
    with pytest.raises(BadInput, match="tiny: a token's embedding is zero"):
        measured(model)
