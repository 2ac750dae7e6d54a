"""What is measured of a model, and what of the base a loss compares with."""

from typing import Any

import pytest
import tiny_models
import torch

from model_diffs.evaluation import scoring
from model_diffs.unlearning import measuring
from model_diffs.unlearning.data import Tokens, split_batch
from model_diffs.unlearning.losses import get_loss
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import CachedReference, state_splits
from model_diffs.unlearning.settings import Settings

FORGET = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [3, 4, 5, 6], [20, 21]]
RETAIN = [[30, 31, 32, 33], [40, 41], [50, 51, 52]]


def token_nll(network: Network, texts: list[list[int]]) -> float:
    total, count = 0.0, 0
    for ids in texts:
        logits = network.model(input_ids=torch.tensor([ids])).logits[0].detach().double()
        total -= float(logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum())
        count += len(ids) - 1
    return total / count


def test_without_an_accelerator_every_held_out_text_counts_once() -> None:
    network = Network(tiny_models.build("gpt_neox"))
    splits = {"forget": Tokens([[1, 2]], FORGET, {}), "retain": Tokens([[1, 2]], RETAIN, {})}
    expected = [token_nll(network, texts) for texts in (FORGET, RETAIN)]
    for size in (1, 2, 9):
        found = measuring.nlls(network, splits, 0, size)
        assert [*found] == ["forget_NLL", "retain_NLL", "gap"]
        assert found["forget_NLL"] == pytest.approx(expected[0], rel=1e-5)
        assert found["retain_NLL"] == pytest.approx(expected[1], rel=1e-5)
        assert found["gap"] == pytest.approx(expected[0] - expected[1], rel=1e-3)


def test_what_is_not_finite_is_empty() -> None:
    model = tiny_models.build("gpt_neox")
    with torch.no_grad():
        model.get_output_embeddings().weight[31] = torch.nan
    splits = {"forget": Tokens([], FORGET, {}), "retain": Tokens([], [], {})}
    found = measuring.nlls(Network(model), splits, 0, 2)
    assert found == dict.fromkeys(("forget_NLL", "retain_NLL", "gap"))


def test_accuracies_have_the_names_of_domains_folds_and_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [
        scoring.Answer(f"q{i}", "hazard", "heldout", i % 3 > 0, 0.0, f"e{i}", i % 2 > 0)
        for i in range(12)
    ]
    asked: list[Any] = []

    def score(*arguments: Any) -> list[scoring.Answer]:
        asked.append(arguments)
        return given

    monkeypatch.setattr(scoring, "score", score)
    found = measuring.accuracies("model", "tokenizer", "questions")  # type: ignore[arg-type]
    assert asked == [("model", "tokenizer", "questions")]
    expected = scoring.accuracies(given)
    names = [f"{one.name}_accuracy" for one in expected]
    assert [*found] == [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    for name, one in zip(names, expected, strict=True):
        assert [found[f"{name}{end}"] for end in ("", "_low", "_high")] == [*one[3:6]]
    assert measuring.in_words(found) == "hazard 0.667, hazard_heldout 0.667"


def test_a_line_leaves_out_intervals_and_forms_and_shows_what_is_missing() -> None:
    measured = {
        "forget_NLL": 1.23456, "gap": None, "hazard_accuracy": 0.25, "hazard_accuracy_low": 0.1,
        "hazard_accuracy_high": 0.4, "hazard_seen_accuracy": 0.5, "hazard_unseen_accuracy": 0.0,
    }  # fmt: skip
    assert measuring.in_words(measured) == "forget_NLL 1.235, gap –, hazard 0.250"


# ── the base's states ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "target", "splits"),
    [
        ("cb", "orthogonal", ("retain", "forget")),
        ("cb_lat", "orthogonal", ("retain", "forget")),
        ("cb", "random", ("retain",)),
        ("cb_lat", "random", ("retain",)),
        ("rmu", "orthogonal", ("retain",)),
        ("npo", "orthogonal", ()),
    ],
)
def test_states_of_forget_texts_are_kept_where_a_loss_turns_from_them(
    method: str, target: Any, splits: tuple[str, ...]
) -> None:
    assert state_splits(get_loss(method), Settings(layers=(0,), cb_target=target)) == splits


def test_states_are_zero_behind_each_text_and_texts_may_come_alone() -> None:
    network = Network(tiny_models.build("gpt_neox"))
    kept = CachedReference(torch.float32, [1, 0], None)  # type: ignore[arg-type]
    kept.reserve("retain", {i: len(ids) for i, ids in enumerate(RETAIN)}, 32)
    for rows in ([2, 0], [1]):
        kept.fill(network, "retain", split_batch(RETAIN, rows, 0, torch.device("cpu")), "states")
    for rows in ([0, 1, 2], [1], [2, 1]):
        batch = split_batch(RETAIN, rows, 0, torch.device("cpu"))
        for layer in (0, 1):
            found = kept.states("retain", batch, layer)
            expected = network.states(batch, [layer])[layer].detach()
            real = batch.attention_mask.bool()
            torch.testing.assert_close(found[real], expected[real])
            assert not found[~real].any() and found.shape == expected.shape
