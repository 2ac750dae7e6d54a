"""Streaming sums on states made up here: against all tokens at once, by one process and by two."""

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from model_diffs.activations import sums, tokens
from model_diffs.activations.sums import DifferenceSums, ModelSums
from model_diffs.activations.tokens import TokenBatch, Tokens, padded_batches, tokenise
from model_diffs.core.errors import BadInput

CPU = torch.device("cpu")
WIDTH, STATES = 3, 2
LENGTHS, STARTS = [4, 2, 6, 1, 3], [1, 0, 2, 0, 0]
ORDER = [[2, 0], [4, 3], [1]]
TOKENS = Tokens(
    [list(range(1, n + 1)) for n in LENGTHS], STARTS, np.array([0, 2, 3, 5, 6]), {}
)  # fmt: skip


def states_of(model: int) -> list[list[torch.Tensor]]:
    """`[state][document]` fp32 `[positions, d]`, around a mean far larger than their spread."""
    generator = torch.Generator().manual_seed(model)
    common = 100 * torch.randn(STATES, WIDTH, generator=generator)
    return [
        [common[state] + torch.randn(n, WIDTH, generator=generator) for n in LENGTHS]
        for state in range(STATES)
    ]


def padded(of: list[torch.Tensor], at: TokenBatch) -> torch.Tensor:
    """The states of a batch, with numbers at padding that must not be read."""
    found = torch.full((*at.counted.shape, WIDTH), 1e6)
    for place, row in enumerate(at.rows):
        found[place, : LENGTHS[row]] = of[row]
    return found


def read(order: list[list[int]], name: str = "m") -> tuple[ModelSums, DifferenceSums]:
    """Sums of model 0, and of the change from model 0 to 1, over these batches."""
    of_model, change = ModelSums(name, 5), DifferenceSums(name, 5)
    a, b = states_of(0), states_of(1)
    for at in padded_batches(TOKENS, order, 0, CPU):
        for state in range(STATES):
            hidden_a, hidden_b = padded(a[state], at), padded(b[state], at)
            of_model.add(state, hidden_a, hidden_a[at.counted], at)
            change.add(state, hidden_a[at.counted], hidden_b[at.counted], at)
    return of_model, change


def expected() -> dict[str, np.ndarray]:
    """Every statistic from the counted tokens of all documents, in fp64."""
    found: dict[str, list[Any]] = {}

    def keep(name: str, value: Any) -> None:
        found.setdefault(name, []).append(np.asarray(value))

    for of_a, of_b in zip(states_of(0), states_of(1), strict=True):
        a, b = ([h[s:].double() for h, s in zip(of, STARTS, strict=True)] for of in (of_a, of_b))
        everything = torch.cat(a)
        keep("norm_l1", [h.abs().sum() for h in a])
        keep("norm_l2", [h.norm(dim=1).sum() for h in a])
        keep("pooled", torch.stack([h.mean(0) for h in a]))
        keep("last", torch.stack([h[-1] for h in a]))
        keep("mean", everything.mean(0))
        keep("spectrum", torch.linalg.eigvalsh(everything.T.cov(correction=0)).flip(0))
        first = torch.stack([h[0].norm() for h in a]).mean()
        others = torch.cat([h[1:].norm(dim=1) for h in a]).mean()
        keep("first_position_ratio", first / others)
        pairs = list(zip(a, b, strict=True))
        keep("dh_l1", [(y - x).abs().sum() for x, y in pairs])
        keep("dh_l2", [(y - x).norm(dim=1).sum() for x, y in pairs])
        keep("dh_rel", [((y - x).norm(dim=1) / x.norm(dim=1)).sum() for x, y in pairs])
        keep("cosine", [torch.cosine_similarity(x, y).sum() for x, y in pairs])
    by_document = {"mean", "spectrum", "first_position_ratio"}
    return {
        name: np.stack(values) if name in by_document else np.stack(values, 1)
        for name, values in found.items()
    }


def check(statistics: Any) -> None:
    for name, value in expected().items():
        if hasattr(statistics, name):
            found = getattr(statistics, name)
            assert found.shape == value.shape, name
            np.testing.assert_allclose(found, value, rtol=2e-5, atol=1e-5, err_msg=name)


def test_sums_equal_statistics_of_all_tokens_at_once() -> None:
    of_model, change = read(ORDER)
    of_model.check()
    assert of_model.count == TOKENS.counts.sum() == 13
    for one in (of_model, change):
        found = one.statistics(TOKENS.documents, TOKENS.counts)
        assert found.documents is TOKENS.documents and (found.tokens == TOKENS.counts).all()
        check(found)


def test_two_processes_that_share_the_batches_give_the_statistics_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process is a thread; their sums meet in a list, as in an all-reduce."""
    meeting, given = threading.Barrier(2), {}

    def sum_over_both(tensor: torch.Tensor) -> torch.Tensor:
        given[threading.get_ident()] = tensor.clone()
        meeting.wait(20)
        total = torch.stack(list(given.values())).sum(0)
        meeting.wait(20)
        return total

    monkeypatch.setattr(sums, "sum_over_processes", sum_over_both)
    parts = [read(ORDER[:1]), read(ORDER[1:])]
    for which in (0, 1):
        finish: list[Callable[[Any, Any], Any]] = [part[which].statistics for part in parts]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda f: f(TOKENS.documents, TOKENS.counts), finish))
        for found in both:
            check(found)


def test_documents_of_one_token_have_no_first_position_ratio() -> None:
    single = Tokens([[1], [2]], [0, 0], np.array([0, 1]), {})
    found = ModelSums("m", 2)
    for at in padded_batches(single, [[0, 1]], 0, CPU):
        h = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
        found.add(0, h[:, None], h, at)
    assert found.count == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics = found.statistics(single.documents, single.counts)
    assert np.isnan(statistics.first_position_ratio).all()
    np.testing.assert_array_equal(statistics.norm_l2[:, 0], [5, 10])
    np.testing.assert_array_equal(statistics.norm_l1[:, 0], [7, 14])


def test_sums_are_kept_in_double_precision() -> None:
    """In fp32 2²⁴ + 1 is 2²⁴."""
    one = Tokens([[1, 2]], [0], np.array([0]), {})
    of_model, change = ModelSums("m", 1), DifferenceSums("m", 1)
    for at in padded_batches(one, [[0]], 0, CPU):
        h = torch.tensor([[2.0**24], [1.0]])
        of_model.add(0, h[None], h, at)
        change.add(0, h, 2 * h, at)
    found = of_model.statistics(one.documents, one.counts)
    assert found.norm_l1[0, 0] == found.norm_l2[0, 0] == 2**24 + 1
    assert change.statistics(one.documents, one.counts).dh_l1[0, 0] == 2**24 + 1


def test_more_tokens_than_fp32_can_count() -> None:
    one = Tokens([[1, 2]], [0], np.array([0]), {})
    found = ModelSums("m", 1)
    for at in padded_batches(one, [[0]], 0, CPU):
        h = torch.tensor([[1.5], [2.5]])
        found.add(0, h[None], h, at)
    found.count = 2**24 + 1
    mean = found.statistics(one.documents, one.counts).mean
    np.testing.assert_allclose(mean, 2.0, rtol=1e-12)


def test_a_single_zero_state_is_named() -> None:
    one = Tokens([[1, 2]], [0], np.array([0]), {})
    change = DifferenceSums("a to b", 1)
    for at in padded_batches(one, [[0]], 0, CPU):
        for state, value in ((0, 1.0), (1, 0.0)):
            h = torch.tensor([[value], [1.0]])
            change.add(state, h, h + 1, at)
    with pytest.raises(BadInput, match="dh_rel is not finite at hidden state 1"):
        change.statistics(one.documents, one.counts)


@pytest.mark.parametrize("state", [0, 1])
def test_states_that_are_not_finite_are_named(state: int) -> None:
    of_model, change = ModelSums("the model", 5), DifferenceSums("a to b", 5)
    for at in padded_batches(TOKENS, ORDER, 0, CPU):
        for one in range(STATES):
            h = padded(states_of(0)[one], at)
            if one == state:
                h[0, at.counted[0].nonzero()[0], 0] = torch.nan
            of_model.add(one, h, h[at.counted], at)
            zero = torch.zeros_like(h) if one == state else h
            change.add(one, zero[at.counted], h[at.counted], at)
    with pytest.raises(BadInput, match=rf"the model: NaN or Inf in hidden state {state} "):
        of_model.check()
    with pytest.raises(BadInput, match=rf"a to b: \w+ is not finite at hidden state {state}"):
        change.statistics(TOKENS.documents, TOKENS.counts)


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────


def test_places_of_counted_tokens() -> None:
    (at,) = padded_batches(TOKENS, [[2, 1, 0]], 9, CPU)
    assert at.batch.input_ids.tolist() == [
        [1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9], [1, 2, 3, 4, 9, 9],
    ]  # fmt: skip
    assert at.counted.int().tolist() == [
        [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0],
    ]  # fmt: skip
    assert at.places.tolist() == [
        [0, 2], [0, 3], [0, 4], [0, 5], [1, 0], [1, 1], [2, 1], [2, 2], [2, 3],
    ]  # fmt: skip
    assert at.first.tolist() == [0, 4, 6] and at.last.tolist() == [5, 1, 3]
    assert at.membership.tolist() == [[1] * 4 + [0] * 5, [0] * 4 + [1] * 2 + [0] * 3,
                                      [0] * 6 + [1] * 3]  # fmt: skip
    assert at.membership.dtype == torch.float32


def test_bos_and_skipped_positions_do_not_count() -> None:
    tokenizer = tiny_models.tokenizer("llama")  # a BOS, then one token per byte
    texts = ["abc", "d", "efgh"]
    for keep, skip, starts, kept, left_out in (
        (False, 0, [1, 1, 1], [0, 1, 2], {"documents": 0, "tokens": 3}),
        (True, 0, [0, 0, 0], [0, 1, 2], {"documents": 0, "tokens": 0}),
        (False, 1, [1, 1, 1], [0, 1, 2], {"documents": 0, "tokens": 3}),
        (False, 2, [2, 2], [0, 2], {"documents": 1, "tokens": 6}),
        (True, 3, [3, 3], [0, 2], {"documents": 1, "tokens": 8}),
    ):
        found = tokenise(tokenizer, texts, 50, keep, skip)
        assert (found.starts, found.documents.tolist(), found.left_out) == (starts, kept, left_out)
        assert found.lengths == [len(texts[i]) + 1 for i in kept]
        assert found.counts.tolist() == [n - s for n, s in zip(found.lengths, starts, strict=True)]
    assert tokenise(tokenizer, texts, 3, False, 0).lengths == [3, 2, 3]
    with pytest.raises(BadInput, match="--skip-first"):
        tokenise(tokenizer, texts, 50, False, 5)
    plain = tokenise(tiny_models.tokenizer("gpt2"), texts, 50, False, 0)
    assert plain.starts == [0, 0, 0], "nothing in front that could be left out"


def test_each_process_has_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        monkeypatch.setattr(tokens.devices, "processes", lambda rank=rank: (rank, 2))
        assert tokens.own_share([[0], [1], [2]]) == [[[0], [2]], [[1]]][rank]
        assert len(tokens.own_share([[0], [1]])) == 1
        with pytest.raises(BadInput, match="these: 2 processes share 1 batches"):
            tokens.own_share([[0]], "these")


def test_sums_over_tokens_are_kept_in_fp64() -> None:
    names = {"norm_l1", "norm_l2", "first_moment", "second_moment", "first_position"}
    of_model, change = read(ORDER)
    for kept in of_model.states:
        assert {n for n, one in kept.items() if one.dtype == torch.float64} == names
    assert all(one.dtype == torch.float64 for kept in change.states for one in kept.values())
