"""Model diffing: against dense references, planted truths, A against A, and calibration."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_study
import torch
from itda_study import LAYER, compare, diffing, edited, files, make
from scipy import stats

from model_diffs.activations.tokens import padded_batches
from model_diffs.dictionaries import examples, reading, tables
from model_diffs.dictionaries.diffing import ModelDiffing
from model_diffs.dictionaries.itda import ITDA
from model_diffs.dictionaries.sums import BatchCodes, ModelTotals, sum_codes


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    return make(tmp_path_factory.mktemp("diffing"))


# ── what is measured ──────────────────────────────────────────────────────────────────────────────


def dense_codes(study: tiny_study.Study, model: str, itda: ITDA) -> list[np.ndarray]:
    """Coefficients `[tokens, m]` of each text, from transformers' own hidden states."""
    found = []
    for split in ("forget", "retain"):
        for states in tiny_study.states(model, split):
            codes = itda.encode(torch.from_numpy(states[LAYER + 1]).float())
            dense = torch.zeros(len(codes.values), itda.size)
            found.append(dense.scatter_add_(1, codes.indices, codes.values).double().numpy())
    return found


def test_differences_and_errors_equal_those_of_dense_codes(study: tiny_study.Study) -> None:
    (found,) = compare(study, study.model_b)
    itda = ITDA.from_pretrained(study.root / "itda")
    a, b = (dense_codes(study, model, itda) for model in (study.model_a, study.model_b))
    tokens = np.array([len(codes) for codes in a])
    all_a, all_b = np.concatenate(a), np.concatenate(b)
    difference = all_b.mean(0) - all_a.mean(0)
    scale = np.abs(all_a).max()
    assert np.allclose(found.changes.difference, difference, atol=1e-5 * scale)
    assert np.allclose(found.base.frequency, (all_a != 0).mean(0), atol=2e-3)
    assert (found.order == np.argsort(-found.changes.difference, kind="stable")).all()
    # The jackknife over documents knows nothing of the ratio's linearisation.
    d = np.stack([y.sum(0) - x.sum(0) for x, y in zip(a, b, strict=True)])
    without = (d.sum(0) - d) / (tokens.sum() - tokens)[:, None]
    n = len(d)
    jackknife = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    large = jackknife > 1e-3 * scale
    assert large.sum() > 20
    assert np.allclose(found.changes.std_error[large], jackknife[large], rtol=0.15)
    used = np.array([[(c != 0).any(0) for c in codes] for codes in (a, b)]).any(0).sum(0)
    assert (np.abs(found.changes.documents - used) <= 1).all()


def test_model_against_itself_has_no_differences(study: tiny_study.Study) -> None:
    (found,) = compare(study, study.model_a)
    assert not found.changes.difference.any() and not found.changes.std_error.any()
    assert not (found.changes.q_value < 0.05).any()
    assert float(found.fits["all"].change.mean) == 0 and not found.fits["all"].worse


def test_planted_multiple_of_an_atom_ranks_first(study: tiny_study.Study) -> None:
    itda = ITDA.from_pretrained(study.root / "itda")
    size = np.median(
        np.linalg.norm(tiny_study.states(study.model_a, "forget")[0][LAYER + 1], axis=1)
    )
    for latent in (3, 40):
        bias = f"gpt_neox.layers.{LAYER}.mlp.dense_4h_to_h.bias"
        planted = edited(
            study,
            f"planted_{latent}",
            lambda t, atom=itda.atoms[latent], bias=bias: t[bias].add_(10 * float(size) * atom),
        )
        (found,) = compare(study, planted)
        assert found.order[0] == latent
        assert found.changes.q_value[latent] < 1e-6
        first, second = found.changes.difference[found.order[:2]]
        assert first > 2 * second


def test_side_by_side_and_one_by_one_are_equal(study: tiny_study.Study) -> None:
    models = (study.model_b, study.model_a)
    for together, apart in zip(
        compare(study, *models, side_by_side="yes"),
        compare(study, *models, side_by_side="no"),
        strict=True,
    ):
        pd.testing.assert_frame_equal(together.changes, apart.changes, check_exact=True)
        assert together.fits == apart.fits
    assert not list(study.root.glob(".itda_codes*"))


def test_base_is_encoded_once_for_all_changed_models(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    original = ModelDiffing.load

    def load(self: ModelDiffing, name: str) -> Any:
        loaded.append(name)
        return original(self, name)

    monkeypatch.setattr(ModelDiffing, "load", load)
    both = compare(study, study.model_b, study.model_a)
    assert loaded == [study.model_a, study.model_b, study.model_a]
    (alone,) = compare(study, study.model_b)
    assert np.array_equal(alone.changes.difference, both[0].changes.difference)


def test_a_dictionary_whose_metadata_say_no_more_reads_every_position(
    study: tiny_study.Study,
) -> None:
    opened = ModelDiffing(
        study.root / "itda", study.model_a, None, device="cpu", seq_len=9, batch_size=3
    )
    assert (opened.options.seq_len, opened.options.batch_size) == (9, 3)
    for name in ("skip_first", "keep_bos"):
        opened.itda.metadata.pop(name, None)
    tokens = opened.read(files(study)).tokens
    assert max(tokens.lengths) == 9 and set(tokens.starts) == {0}
    opened.itda.metadata["skip_first"] = 2
    assert set(opened.read(files(study)).tokens.starts) == {2}


@pytest.mark.parametrize("keep", [True, False])
def test_codes_are_kept_where_asked_for_and_fits_are_of_each_data_set(
    study: tiny_study.Study, keep: bool
) -> None:
    opened = diffing(study)
    found = opened.run_model_diffing(study.model_a, study.model_b, files(study), 0, keep)
    kept = [found["activations_M"], found["activations_MD"]]
    assert [one is not None for one in kept] == [keep] * 2
    (compared,) = compare(study, study.model_b)
    assert {*compared.fits} == {"all", "forget", "retain"}
    assert compared.base.activations() is None
    tokens = [compared.fits[name].tokens for name in ("forget", "retain", "all")]
    assert tokens[0] + tokens[1] == tokens[2] == found["fvu"].tokens


# ── errors and tests over documents ───────────────────────────────────────────────────────────────


def totals_of(documents: int, latents: int = 3) -> ModelTotals:
    """Empty sums over documents of one data set."""
    return ModelTotals(latents, torch.zeros(documents, dtype=torch.int64), 1)


def halves(itda: ITDA, states: torch.Tensor, order: np.ndarray) -> ModelTotals:
    """Documents `[D, tokens, d]` of one model, split in two and set against each other in pairs."""
    paired, size = totals_of(len(order) // 2, itda.size), states.shape[1]
    places = torch.cartesian_prod(torch.arange(20), torch.arange(size))
    for start in range(0, len(order) // 2, 20):
        sides = [order[start : start + 20], order[len(order) // 2 :][start : start + 20]]
        codes = [itda.encode(states[side].flatten(0, 1)) for side in sides]
        a, b = (sum_codes(c, places, 20, itda.size) for c in codes)
        paired.add(b, a, list(range(start, start + 20)))
    return paired


def test_p_values_of_two_halves_of_one_model_are_uniform(study: tiny_study.Study) -> None:
    itda = ITDA.from_pretrained(study.root / "itda")
    draw = np.random.default_rng(0)
    words = np.array([*tiny_study.WORDS["forget"], *tiny_study.WORDS["retain"]])
    lines = [" ".join(draw.choice(words, 4))[:18].ljust(18, ".") for _ in range(800)]
    (study.root / "equal.txt").write_text("\n".join(lines))
    opened = diffing(study)
    texts = opened.read([str(study.root / "equal.txt")])
    reader = opened.load(study.model_a)
    with torch.inference_mode():
        (at,) = padded_batches(texts.tokens, [range(len(lines))], 0, torch.device("cpu"))
        states = torch.zeros(*at.counted.shape, itda.activation_dim)
        states[at.counted] = reading.activations(reader, at, [LAYER])[LAYER]
    p = []
    for _ in range(6):
        changes = halves(itda, states, draw.permutation(len(lines))).changes()
        tested = ~np.isnan(changes.p_value)
        p.append(changes.p_value[tested])
        # Few latents come out at 5 %, and hardly any once their number is allowed for.
        assert (changes.q_value[tested] < 0.05).mean() < 0.02
    together = np.concatenate(p)
    assert len(together) > 400
    assert 0.03 < (together < 0.05).mean() < 0.07
    # Latents of a text depend on one another, so the distance is bounded, not tested.
    assert stats.kstest(together, "uniform").statistic < 0.06


def test_rare_latents_have_no_p_value() -> None:
    paired = totals_of(3)
    a, b = [
        _codes([[0, 1], [1, 1], [0, 1]], [[0.0, 1.0], [1.0, 2.0], [0.0, 3.0]]),
        _codes([[0, 1], [1, 1], [0, 1]], [[2.0, 1.0], [1.0, 2.0], [2.0, 3.5]]),
    ]
    paired.add(b, a, [0, 1, 2])
    changes = paired.changes()
    assert np.isnan(changes.p_value).all() and np.isnan(changes.q_value).all()
    assert changes.documents.tolist() == [2, 3, 0]
    assert changes.difference.tolist() == pytest.approx([4 / 3, 0.5 / 3, 0.0])


def test_single_document_has_no_error_and_no_verdict_on_fit(study: tiny_study.Study) -> None:
    paired = totals_of(1)
    paired.add(_codes([[0, 1]], [[2.0, 1.0]]), _codes([[0, 1]], [[1.0, 1.0]]), [0])
    assert np.isnan(paired.changes().std_error).all()
    one = study.root / "one.txt"
    one.write_text((study.root / "forget.txt").read_text().splitlines()[0] + "\n")
    opened = diffing(study)
    (found,) = opened.compare(study.model_a, [study.model_b], opened.read([str(one)]))
    assert found.fits["all"].documents == 1 and not found.fits["all"].worse
    assert tables.latents(found, opened.itda, study.root)["std_error"].isna().all()


def _codes(indices: list[list[int]], values: list[list[float]]) -> Any:
    from model_diffs.dictionaries.pursuit import Codes, merged

    codes = Codes(torch.tensor(indices), torch.tensor(values), torch.zeros(len(indices)))
    places = torch.tensor([[row, 0] for row in range(len(indices))])
    return sum_codes(merged(codes), places, len(indices), 3)


def test_p_value_is_students_over_documents_with_the_latent() -> None:
    draw = np.random.default_rng(1)
    d = draw.normal(0.4, 1.0, 15)
    paired = totals_of(55)
    for row, value in enumerate([*d.tolist(), *[0.0] * 40]):
        if value:  # latent 0 in both models, B's higher by `value`; latent 1 alike everywhere
            a, b = (_codes([[0, 1]], [[3.0 + more, 1.0]]) for more in (0.0, value))
        else:
            a = b = _codes([[1, 1]], [[1.0, 0.0]])
        paired.add(b, a, [row])
    changes = paired.changes()
    assert changes.documents[0] == 15
    assert changes.p_value[0] == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-3)
    assert changes.p_value[1] == 1.0 and np.isnan(changes.p_value[2])
    tested = ~np.isnan(changes.p_value)
    expected = stats.false_discovery_control(changes.p_value[tested])
    assert np.allclose(changes.q_value[tested], expected)


def test_memory_does_not_grow_with_tokens(study: tiny_study.Study) -> None:
    opened = diffing(study)

    def kept(totals: ModelTotals) -> int:
        tensors = [*vars(totals).values(), *totals.top, *totals.kept]
        return sum(t.numel() for t in tensors if isinstance(t, torch.Tensor))

    sizes = []
    for repeats in (1, 4):
        path = study.root / f"long_{repeats}.txt"
        path.write_text("\n".join(["the mill by the river " * repeats] * 9))
        (found,) = opened.compare(study.model_a, [study.model_b], opened.read([str(path)]))
        sizes.append((found.fits["all"].tokens, kept(found.changed)))
    assert sizes[1][0] > 3 * sizes[0][0] and sizes[0][1] == sizes[1][1]


# ── contexts ──────────────────────────────────────────────────────────────────────────────────────


def test_contexts_are_the_documents_with_the_highest_coefficients(study: tiny_study.Study) -> None:
    (found,) = compare(study, study.model_b)
    dense = dense_codes(study, study.model_a, ITDA.from_pretrained(study.root / "itda"))
    top = found.base.top
    for latent in range(0, top.values.shape[1], 5):
        highest = sorted((float(c[:, latent].max()) for c in dense), reverse=True)
        values = [v for v in top.values[:, latent].tolist() if v > 0]
        assert np.allclose(values, highest[: len(values)], atol=1e-3)
        for value, row, place in zip(
            values,
            top.documents[:, latent].tolist(),
            top.positions[:, latent].tolist(),
            strict=False,
        ):
            assert dense[row][place, latent] == pytest.approx(value, abs=1e-3)


def test_latent_belongs_to_the_data_set_with_most_of_its_activity() -> None:
    """Per token: the second data set is four times as long, and owns no more for that."""
    totals = ModelTotals(5, torch.tensor([0, 0, 1]), 1)
    sums = torch.tensor([[9.0, 1, 1, 0, 0], [9, 1, 1, 0, 0], [0, -200, 8, 1, 0]]).double()
    nothing = torch.zeros(3, 5)
    counts = torch.tensor([5.0, 5, 40]).double()
    codes = BatchCodes(sums, nothing, nothing, nothing.long(), torch.zeros(3).double(), counts)
    totals.add(codes, codes, [0, 1, 2])
    found = tables.owners(totals)
    # 18/10 against 0; 2/10 against 200/40; 2/10 against 8/40; 0 against 1/40; nothing
    shared, unused = tables.SHARED, tables.UNUSED
    assert found.tolist() == [0, 1, shared, 1, unused]
    ranked = tables.share_of(np.array([2, 0, 4, 1, 3]), found, ["one", "other"], 2)
    assert (ranked.latents, ranked.shared) == (2, 1)
    assert ranked.share == {"one": 0.5, "other": 0.5}
    assert ranked.chance == {"one": 1 / 3, "other": 2 / 3}
    assert ranked.p_value["one"] == pytest.approx(2 / 3)  # the one of three is among two drawn


def test_markup_in_texts_and_names_is_escaped(study: tiny_study.Study) -> None:
    path = study.root / "markup.txt"
    harmful = '<script>alert("x")</script> & <b>bold</b>'
    path.write_text(f"{harmful}\nplain\n")
    opened = diffing(study)
    texts = opened.read([str(path)])
    (found,) = opened.compare(study.model_a, [study.model_b], texts)
    atoms = {"latent": range(opened.itda.size), "token": "</i>", "before": "<i>"}
    pd.DataFrame(atoms).to_csv(study.root / "atoms.csv", index=False)
    page = examples.page(
        found,
        tables.latents(found, opened.itda, study.root),
        texts,
        opened.tokenizer,
        title="A <to> B",
        names=("<A>", "B & C"),
        notes=["<note>"],
        shown=50,
        count=5,
    )
    for tag in ("<script", "<b>", "<i>", "<to>", "<A>", "<note>"):
        assert tag not in page
    assert "&lt;b&gt;bold" in page
    assert "B &amp; C" in page and "http" not in page and "src=" not in page


# ── where the latents that changed most are from ──────────────────────────────────────────────────


def test_shares_of_planted_owners_and_their_excess_over_chance() -> None:
    # Latents 0 to 9: of the first set 0, 1, 2; of the second 3 to 7; shared 8; never used 9.
    owned = np.array([0, 0, 0, 1, 1, 1, 1, 1, tables.SHARED, tables.UNUSED])
    ranked = np.array([0, 8, 1, 9, 3, 2, 4, 5, 6, 7])
    one = tables.share_of(ranked, owned, ["first", "second"], top=3)
    rows = tables.share_rows({"rose": one})
    assert [row["dataset"] for row in rows] == ["first", "second"]
    assert [row["number"] for row in rows] == [1, 2]
    assert {row["latents"] for row in rows} == {3} and {row["skipped"] for row in rows} == {1}
    assert rows[0]["share"] == pytest.approx(2 / 3) and rows[0]["chance"] == pytest.approx(3 / 8)
    assert rows[0]["over_chance"] == pytest.approx(2 / 3 - 3 / 8)
    # Two or three of three drawn from eight, of which three are the first set's.
    assert rows[0]["p_value"] == pytest.approx((3 * 5 + 1) / 56)
    assert sum(row["over_chance"] for row in rows) == pytest.approx(0)
    assert tables.share_rows(None) == []
