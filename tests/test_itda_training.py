"""How a dictionary grows, batch by batch, on activations made here: against single tokens."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_diffs.activations.tokens import TokenBatch, Tokens
from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import pursuit, reading, training
from model_diffs.dictionaries.options import Training
from model_diffs.dictionaries.reading import Reading
from model_diffs.dictionaries.training import Trained
from model_diffs.stats.intervals import ratio_interval

CPU = torch.device("cpu")
D = 6


def settings(**changed: Any) -> Training:
    given = {"layer": (0,), "k": 3, "max_atoms": 12, "fvu_threshold": 0.2, "seed": 3}
    return Training(**{**given, **changed})


def tokens(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, D, generator=generator)


def at(first: int, count: int, per_document: int = 4) -> Tensor:
    """Where `count` tokens are, the first of all being number `first`."""
    number = torch.arange(first, first + count)
    return torch.stack([number // per_document, number % per_document], 1)


def grown(batches: list[Tensor], **changed: Any) -> Trained:
    found, seen = Trained(0, D, settings(**changed), CPU), 0
    for x in batches:
        found.update(x, at(seen, len(x)))
        seen += len(x)
    return found


def fvu(x: np.ndarray, atoms: list[np.ndarray], k: int) -> float:
    left = x.copy()
    for _ in range(k if atoms else 0):
        products = np.array([atom @ left for atom in atoms])
        j = int(np.abs(products).argmax())
        left = left - products[j] * atoms[j]
    return float(left @ left / (x @ x))


def test_badly_coded_tokens_become_atoms_unless_a_new_one_covers_them() -> None:
    batches = [tokens(10, 1), tokens(10, 2), tokens(10, 3)]
    batches[1][4] = 0  # no direction
    batches[1][5] = -2 * batches[1][3]  # covered by the token two before, if that becomes an atom
    found = grown(batches, max_atoms=50)
    atoms: list[np.ndarray] = []
    where: list[int] = []
    rows, seen = [], 0
    for x in batches:
        old, new, errors = list(atoms), [], []
        for number, row in enumerate(x.double().numpy()):
            size = np.linalg.norm(row)
            error = fvu(row, old, 3) if size else 0.0
            errors.append(error)
            if error > 0.2 and not any((row / size @ one) ** 2 >= 0.8 for one in new):
                new.append(row / size)
                where.append(seen + number)
        atoms, seen = old + new, seen + len(x)
        rows.append((len(rows) + 1, seen, len(atoms), np.mean(errors)))
    assert found.count == len(atoms) and 10 < len(atoms) < 30
    np.testing.assert_allclose(found.atoms, np.stack(atoms), atol=1e-6)
    assert torch.equal(found.atom_indices, torch.cat([at(i, 1) for i in where]))
    for row, expected in zip(found.rows, rows, strict=True):
        assert tuple(row) == pytest.approx(expected, abs=1e-6)
    assert found._gram is not None
    products = found._gram[: found.count, : found.count]
    torch.testing.assert_close(products, found.atoms @ found.atoms.T)


def test_without_kept_products_the_atoms_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [tokens(20, 1), tokens(20, 2)]
    kept = grown(batches)
    monkeypatch.setattr(pursuit, "GRAM_BYTES", 12**2 * 4)
    assert grown(batches)._gram is not None, "as much as there is room for"
    monkeypatch.setattr(pursuit, "GRAM_BYTES", 12**2 * 4 - 1)
    formed = grown(batches)
    assert formed._gram is None and torch.equal(formed.atom_indices, kept.atom_indices)
    monkeypatch.setattr(training, "_BLOCK", 3)  # candidates are compared in parts
    assert torch.equal(grown(batches).atom_indices, kept.atom_indices)


def test_a_full_dictionary_takes_the_first_and_no_more() -> None:
    batches = [tokens(10, 1), tokens(30, 2), tokens(10, 3), tokens(5, 4)]
    free, full = grown(batches[:2], max_atoms=60), grown(batches, max_atoms=12)
    assert free.count > 12 == full.count == full.settings.max_atoms
    assert torch.equal(full.atom_indices, free.atom_indices[:12])
    assert (full.tokens, full.tokens_since_full) == (55, 15)
    assert [row.atoms for row in full.rows][1:] == [12, 12, 12]


def test_a_dictionary_is_finished_once_full_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "JUDGED", 20)
    batches = [tokens(40, 1), tokens(10, 2), tokens(10, 3)]
    assert not grown(batches[:2]).finished
    assert grown(batches).finished
    assert not grown(batches, max_atoms=60).finished
    assert grown(batches).tokens_since_full == 20
    # The last batches with as many tokens as are judged stay, no more.
    assert [len(x) for x, *_ in grown(batches).recent] == [10, 10]
    assert [len(x) for x, *_ in grown([*batches, tokens(4, 4)]).recent] == [10, 10, 4]
    assert [len(x) for x, *_ in grown(batches[:2]).recent] == [40, 10]


def test_the_covering_cosine_meets_the_threshold() -> None:
    for threshold, cosine in ((0.2, 0.8**0.5), (1.5, 0.0), (0.0, training.SAME)):
        assert grown([], fvu_threshold=threshold).covering == pytest.approx(cosine)
    # Two unit vectors of cosine c have a mean squared difference of (2 − 2c) / d.
    found = grown([], loss_threshold=0.1)
    assert found.threshold == 0.1
    assert (2 - 2 * found.covering) / D == pytest.approx(0.1)
    assert grown([], fvu_threshold=0.3).threshold == 0.3


def test_the_loss_of_directions_ignores_size_and_chooses_atoms() -> None:
    found = grown([tokens(8, 1)], loss_threshold=0.05, k=1)
    x = tokens(5, 9)
    codes = found.encode(x)
    rebuilt = pursuit.decode(codes, found.atoms)
    expected = [
        float(((a / a.norm() - b / b.norm()) ** 2).mean()) for a, b in zip(x, rebuilt, strict=True)
    ]
    np.testing.assert_allclose(found._errors(x, codes), expected, rtol=1e-5)
    empty = grown([], loss_threshold=0.05)
    assert torch.isinf(empty._errors(x, empty.encode(x))).all()


def test_the_judgement_is_of_the_tokens_read_last() -> None:
    """A tenth of all tokens, or all since the dictionary is full, where these are more."""
    batches = [tokens(30, 1), tokens(30, 2), tokens(40, 3)]
    for most, last in ((12, 70), (500, 10)):  # full after the first batch, or never
        found = grown(batches, max_atoms=most, fvu_threshold=0.05)
        assert (found.count == 12) == (most == 12)
        seen = torch.cat([one for *_, one in found.recent]).double().numpy()[-last:]
        documents = at(0, 100)[-last:, 0].numpy()
        groups = [documents == one for one in np.unique(documents)]
        sums, counts = zip(*((seen[g].sum(), g.sum()) for g in groups), strict=True)
        judged = found.judged
        np.testing.assert_allclose(judged.fvu, ratio_interval(sums, counts, 3))
        assert judged.fvu_tokens == last
        taken = set(map(tuple, found.atom_indices.tolist()))
        others = [i for i, place in enumerate(at(0, 100).tolist()) if tuple(place) not in taken]
        assert judged.dead_tokens == len(others) == 100 - found.count
        codes = found.encode(torch.cat(batches)[others])
        used = {int(j) for j, c in zip(codes.indices.flatten(), codes.values.flatten(), strict=True)
                if c}  # fmt: skip
        assert judged.dead_share == pytest.approx(1 - len(used) / found.count)
    # Slots that are not used name the first atom, which is not used therefore.
    assert grown([torch.eye(D)[:2], 2 * torch.eye(D)[1:2]]).judged.dead_share == 1 / 2
    atoms_only = grown([torch.eye(D)], fvu_threshold=0.5)
    assert atoms_only.judged.dead_share is None and atoms_only.judged.dead_tokens == 0
    assert atoms_only.judged.fvu_tokens == 1


def test_a_direction_becomes_an_atom_once() -> None:
    """Whatever the threshold: rounding alone leaves some of a known direction unexplained."""
    x = tokens(20, 5)
    again = torch.cat([x, -3 * x, 0.1 * x])
    for batches in ([again], [x, again], [x[:7], again, again]):
        found = grown(batches, fvu_threshold=0.0, max_atoms=50)
        assert found.count == 20
        np.testing.assert_allclose(found.atoms, x / x.norm(dim=1, keepdim=True), atol=1e-6)
    assert grown([]).atom_indices.shape == (0, 2)
    assert found.atom_indices.dtype == torch.int64


def test_an_error_of_the_threshold_is_not_above_it() -> None:
    """Of (1, 1, 1, 1) one axis leaves three quarters unexplained."""
    first, second = torch.eye(D)[:1], (torch.arange(D) < 4).float()[None]
    for threshold, count in ((0.75, 1), (0.74, 2)):
        assert grown([first, second], fvu_threshold=threshold, k=1).count == count


def test_a_token_at_the_threshold_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orthogonal unit vectors have the squared distance 2 / d."""
    for block in (1, 1024):
        monkeypatch.setattr(training, "_BLOCK", block)
        assert grown([torch.eye(D)], loss_threshold=2 / D).count == 1
        assert grown([torch.eye(D)], loss_threshold=1.99 / D).count == D


# ── one pass for all layers ───────────────────────────────────────────────────────────────────────

LENGTHS, STARTS = [4, 2, 3, 5, 1], [1, 0, 0, 2, 0]
TEXTS = Reading(
    [],
    [],
    Tokens([[7] * n for n in LENGTHS], STARTS, np.array([3, 5, 6, 8, 9]), {}),
    np.zeros(5, int),
)
READER: Any = SimpleNamespace(
    anatomy=SimpleNamespace(embedding=SimpleNamespace(weight=torch.zeros(1)))
)
BATCHES = [[0, 1], [2, 3], [4]]


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """Outputs of two blocks `[documents, positions, d]`, in place of a model's; `read` has the
    batches that were."""
    made = {layer: 3 * torch.randn(5, 5, D, generator=torch.Generator().manual_seed(layer))
            for layer in (0, 2)}  # fmt: skip

    def activations(reader: Any, at: TokenBatch, layers: list[int]) -> dict[int, Tensor]:
        READER.read.append(at.rows)
        of = [(at.rows[document], position) for document, position in at.places.tolist()]
        return {layer: torch.stack([made[layer][place] for place in of]) for layer in layers}

    READER.read = []
    monkeypatch.setattr(reading, "activations", activations)
    return made


def by_hand(states: Tensor, batches: list[list[int]], options: Training, layer: int) -> Trained:
    """A dictionary grown on the counted tokens of these documents."""
    found = Trained(layer, D, options, CPU)
    for rows in batches:
        of = [(row, position) for row in rows for position in range(STARTS[row], LENGTHS[row])]
        where = [(int(TEXTS.tokens.documents[row]), position) for row, position in of]
        found.update(torch.stack([states[place] for place in of]), torch.tensor(where))
    return found


@pytest.mark.parametrize("most", [0, 2])
def test_each_layer_has_its_dictionary_from_batches_in_reading_order(
    most: int, states: dict[int, Tensor]
) -> None:
    options = settings(batch_size=2, max_steps=most)
    begin = time.perf_counter()
    found, seconds = training.train(READER, TEXTS, 0, [2, 0], options)
    assert 0 < seconds <= time.perf_counter() - begin
    batches = BATCHES[: most or None]
    assert [one.layer for one in found] == [2, 0] and READER.read == batches
    for one in found:
        expected = by_hand(states[one.layer], batches, options, one.layer)
        assert torch.equal(one.atoms, expected.atoms) and one.rows == expected.rows
        assert torch.equal(one.atom_indices, expected.atom_indices)
        assert one.judged == expected.judged


def test_a_finished_dictionary_reads_no_more(
    states: dict[int, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "JUDGED", 1)
    options = settings(batch_size=1, max_atoms=3, fvu_threshold=0.01)
    states[2][:] = states[2][0, 1]  # of one direction: never full
    found, _ = training.train(READER, TEXTS, 0, [0, 2], options)
    assert READER.read == [[0], [1], [2], [3], [4]]
    assert found[0].finished and [one.tokens for one in found] == [5, 12]
    READER.read.clear()
    (one,), _ = training.train(READER, TEXTS, 0, [0], options)
    assert READER.read == [[0], [1]] and one.rows == found[0].rows


def test_a_layer_without_an_atom_is_refused(states: dict[int, Tensor]) -> None:
    states[2][:] = 0
    with pytest.raises(BadInput, match=r"layer 2: no activation.*lower --fvu-threshold"):
        training.train(READER, TEXTS, 0, [0, 2], settings(batch_size=2))


def test_full_memory_names_the_batch_size(
    states: dict[int, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Trained, "update", full)
    with pytest.raises(BadInput, match="--batch-size 4: try --batch-size 2"):
        training.train(READER, TEXTS, 0, [0], settings(batch_size=4))
