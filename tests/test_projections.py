"""Step 11's tables on sums written here, and its measure from the tables to the interval."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from model_diffs.core.measure import Measure
from model_diffs.core.tables import Absent, Place, Tables
from model_diffs.diagnostics import projections, row_space, selectivity
from model_diffs.diagnostics.row_space import Changes, Reads, Target
from model_diffs.models.architectures import Matrix
from model_diffs.stats.intervals import document_weights

SEED, TEXTS = 5, 12
DRAWN = {split: document_weights(TEXTS, SEED + i) for i, split in enumerate(("forget", "retain"))}


def target(name: str = "m", shape: tuple[int, int] = (6, 8), k: int = 2) -> Target:
    matrix = Matrix(name, name, 3, "mlp", "mlp_in", shape)
    return Target(matrix, {"b": Reads(torch.zeros(k, shape[1]), torch.zeros(k, shape[1]))})


def sums(seed: int, documents: int = TEXTS) -> np.ndarray:
    """`[documents, 5]` with counts of tokens between 1 and 9."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 9, (documents, 2))
    values = draw.uniform(0.1, 1.0, (documents, 3))
    return np.column_stack(
        [values[:, 0], values[:, 1], counts[:, 0], values[:, 2], counts[:, 1]]
    ).astype(float)


def means(of: np.ndarray, column: int, count: int, weights: np.ndarray) -> Any:
    return weights @ of[:, column] / (weights @ of[:, count])


def test_a_row_equals_means_over_tokens_and_their_resamples() -> None:
    totals = {("forget", "m", "b"): sums(0), ("retain", "m", "b"): sums(1)}
    row = projections.metric_row(target(), "b", totals, SEED)
    assert (row["layer"], row["weight_type"], row["name"], row["k"]) == (3, "mlp_in", "m", 2)
    assert row["random_proj_ratio"] == 0.5
    ones, found = np.ones(TEXTS), {}
    for split in ("forget", "retain"):
        of = totals[split, "m", "b"]
        assert row[f"{split}_tokens"] == of[:, 2].sum()
        assert row[f"{split}_effect_tokens"] == of[:, 4].sum()
        for name, columns in (("proj_ratio", (0, 2)), ("proj_norm", (1, 2)), ("effect", (3, 4))):
            drawn = [means(of, *columns, weights) for weights in (ones, DRAWN[split])]
            found[f"{split}_{name}"] = np.append(*drawn)
    found["projection_diff"] = found["forget_proj_ratio"] - found["retain_proj_ratio"]
    found["selectivity_ratio"] = found["forget_proj_ratio"] / found["retain_proj_ratio"]
    found["effect_selectivity"] = found["forget_effect"] / found["retain_effect"]
    for name, values in found.items():
        ends = np.percentile(values[1:], [2.5, 97.5])
        cells = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
        assert cells == pytest.approx([values[0], *ends]), name
    assert {*row} == {*projections.COLUMNS}


def test_what_no_token_gives_has_no_cells() -> None:
    empty, zero = sums(1), sums(1)
    empty[:, 3:] = 0  # no effect could be measured
    zero[:, 0] = 0  # nothing lies inside
    totals = {("forget", "m", "b"): sums(0), ("retain", "m", "b"): empty}
    row = projections.metric_row(target(), "b", totals, SEED)
    assert "retain_effect" not in row and "effect_selectivity" not in row
    assert row["selectivity_ratio"] > 0 and row["retain_effect_tokens"] == 0
    totals["retain", "m", "b"] = zero
    row = projections.metric_row(target(), "b", totals, SEED)
    assert "selectivity_ratio" not in row and row["retain_proj_ratio"] == 0
    assert row["projection_diff"] == row["forget_proj_ratio"]
    zero[0, 0] = 0.5  # on resamples without this document nothing lies inside
    row = projections.metric_row(target(), "b", totals, SEED)
    assert "selectivity_ratio" not in row and row["retain_proj_ratio"] > 0
    empty = sums(0)
    empty[:, :3] = 0  # no input other than zero
    totals["forget", "m", "b"] = empty
    row = projections.metric_row(target(), "b", totals, SEED)
    assert "forget_proj_ratio" not in row and "projection_diff" not in row
    assert row["retain_proj_ratio"] > 0 and row["forget_effect"] > 0


def test_documents_without_tokens_are_not_resampled() -> None:
    some = sums(2)
    some[[3, 7], 3:] = 0
    totals = {("forget", "m", "b"): some, ("retain", "m", "b"): sums(1)}
    row = projections.metric_row(target(), "b", totals, SEED)
    used = np.delete(some, [3, 7], axis=0)
    drawn = means(used, 3, 4, document_weights(10, SEED))
    ends = np.percentile(drawn, [2.5, 97.5])
    assert [row["forget_effect_low"], row["forget_effect_high"]] == pytest.approx([*ends])
    assert row["forget_effect"] == pytest.approx(used[:, 3].sum() / used[:, 4].sum())


def passes() -> list[Any]:
    """Two splits of documents, of which some tokens are left out."""
    return [
        SimpleNamespace(
            split=SimpleNamespace(name=split),
            tokens=SimpleNamespace(
                documents=np.array([0, 2, 5]),
                counts=np.array([4, 1, 6]),
                starts=np.array([1, 0, 2]),
            ),
        )
        for split in ("forget", "retain")
    ]


def test_sums_per_text_keep_their_place_in_the_split() -> None:
    totals = {
        (split, name, "b"): sums(i, 3)
        for i, (split, name) in enumerate((s, n) for s in ("forget", "retain") for n in "mo")
    }
    table = projections.text_table(["m", "o"], "b", totals, passes())
    assert table.columns.tolist() == [*projections.TEXT_COLUMNS]
    assert table["text"].tolist() == [0, 2, 5] * 4
    for (split, name), part in table.groupby(["split", "name"]):
        of = totals[split, name, "b"]
        numbers = part[["proj_ratio_sum", "tokens", "effect_sum", "effect_tokens"]]
        np.testing.assert_array_equal(numbers, of[:, [0, 2, 3, 4]])


def test_the_summary_counts_matrices_and_positions() -> None:
    totals = {("forget", "m", "b"): sums(0), ("retain", "m", "b"): sums(1)}
    table = pd.DataFrame(
        [projections.metric_row(target(), "b", totals, SEED)], columns=[*projections.COLUMNS]
    )
    shared = {"forget": np.array([3, 0, 1]), "retain": np.array([0, 1, 8])}
    found = projections.summary(table, Changes([target()], 5, 2), passes(), shared)
    assert (found["matrices"], found["matrices_unchanged"]) == (5, 4)
    assert found["expert_output_matrices_left_out"] == 2
    assert found["effect_positions_with_prefix_in_the_other_split"] == {
        "forget": {"tokens": 11, "left_out": 2},  # 3 − 1, nothing, nothing below the start
        "retain": {"tokens": 11, "left_out": 7},  # nothing, 1, 8 − 2
    }


# ── shared beginnings ─────────────────────────────────────────────────────────────────────────────


def test_shared_beginnings_equal_a_comparison_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    splits = {
        split: [draw.integers(0, 2, draw.integers(1, 7)).tolist() for _ in range(40)]
        for split in ("forget", "retain", "third")
    }
    given = [
        SimpleNamespace(split=SimpleNamespace(name=name), tokens=SimpleNamespace(ids=ids))
        for name, ids in splits.items()
    ]
    found = row_space.shared_prefixes(given)
    for name, ids in splits.items():
        others = [other for one, of in splits.items() if one != name for other in of]
        for length, own in zip(found[name], ids, strict=True):
            expected = max(n for n in range(len(own) + 1) if any(o[:n] == own[:n] for o in others))
            assert length == expected
    alone = row_space.shared_prefixes(given[:1])
    assert alone["forget"].tolist() == [0] * 40


# ── the measure ───────────────────────────────────────────────────────────────────────────────────

FOLDER = "base__to__npo/row_space_projection"


def planted(root: Path, **changed: Any) -> Place:
    """The tables of two matrices, a third without inputs of both splits, texts out of order."""
    totals = {
        (split, name, "b"): sums(10 * i + j)
        for i, split in enumerate(("forget", "retain"))
        for j, name in enumerate("mno")
    }
    rows = [projections.metric_row(target(n), "b", totals, SEED) for n in "mno"]
    table = pd.DataFrame(rows, columns=[*projections.COLUMNS])
    table.loc[2, ["selectivity_ratio", "effect_selectivity"]] = np.nan
    place = [
        SimpleNamespace(
            split=SimpleNamespace(name=split), tokens=SimpleNamespace(documents=np.arange(TEXTS))
        )
        for split in ("forget", "retain")
    ]
    texts = projections.text_table("mno", "b", totals, place).sample(frac=1, random_state=0)
    folder = root / FOLDER
    folder.mkdir(parents=True)
    table.to_csv(folder / "projection_metrics.csv", index=False)
    lost = texts.index[texts["name"] == changed.pop("lost", "")][:1]
    texts.drop(lost).to_csv(folder / "per_text.csv", index=False)
    record = {
        "arguments": {"seed": SEED, "top_k": 5, **changed},
        "texts": {split: {"sha256": split} for split in ("forget", "retain")},
        "inputs": [],
        "outputs": [],
    }
    (folder / "run.json").write_text(json.dumps(record))
    return Place(Tables(root), FOLDER, "base", "npo", SEED)


def measure(column: str) -> Measure:
    return Measure("key", axis="function", table="projection_metrics", column=column)


@pytest.mark.parametrize(
    ("column", "above", "below"), [("selectivity_ratio", 0, 2), ("effect_selectivity", 3, 4)]
)
def test_the_measure_is_resampled_as_the_step_resamples(
    column: str, above: int, below: int, tmp_path: Path
) -> None:
    place = planted(tmp_path)
    found = selectivity.forget_over_retain(place, measure(column))
    numbers = []
    for j in range(2):
        parts = {split: sums(10 * i + j) for i, split in enumerate(("forget", "retain"))}
        of = [
            np.append(*[means(parts[s], above, below, w) for w in (np.ones(TEXTS), DRAWN[s])])
            for s in parts
        ]
        numbers.append(of[0] / of[1])
    expected = np.mean(numbers, axis=0)
    assert found.value == pytest.approx(expected[0])
    assert found.source.rows == "mean over 2 changed MLP matrices"
    assert found.sample is not None and found.sample.units == "texts"
    np.testing.assert_allclose(found.sample.resampled, expected[1:])
    assert found.ends == pytest.approx(tuple(np.percentile(expected[1:], [2.5, 97.5])))


def test_the_measure_pairs_by_texts_seed_and_top_k(tmp_path: Path) -> None:
    names = []
    for i, changed in enumerate(({}, {}, {"top_k": 6})):
        found = selectivity.forget_over_retain(
            planted(tmp_path / str(i), **changed), measure("selectivity_ratio")
        )
        assert found.sample is not None
        names.append(found.sample.identity)
    assert names[0] == names[1] != names[2]
    other = planted(tmp_path / "seed")._replace(seed=SEED + 1)
    found = selectivity.forget_over_retain(other, measure("selectivity_ratio"))
    assert found.sample is not None and found.sample.identity != names[0]


def test_the_measure_needs_every_text_of_every_matrix(tmp_path: Path) -> None:
    place = planted(tmp_path / "one", lost="o")
    assert selectivity.forget_over_retain(place, measure("selectivity_ratio")).sample, "not used"
    place = planted(tmp_path / "two", lost="m")
    found = selectivity.forget_over_retain(place, measure("selectivity_ratio"))
    assert found.sample is None and "not every text and matrix" in found.unpaired
    place = planted(tmp_path / "all")
    file = tmp_path / "all" / FOLDER / "per_text.csv"
    texts = pd.read_csv(file)
    texts[texts["name"] == "o"].to_csv(file, index=False)
    found = selectivity.forget_over_retain(place, measure("selectivity_ratio"))
    assert "not every text and matrix" in found.unpaired
    place = planted(tmp_path / "none")
    file = tmp_path / "none" / FOLDER / "projection_metrics.csv"
    table = pd.read_csv(file)
    table["selectivity_ratio"] = np.nan
    table.to_csv(file, index=False)
    with pytest.raises(Absent, match="no changed MLP matrix"):
        selectivity.forget_over_retain(place, measure("selectivity_ratio"))


@pytest.mark.parametrize("zero", [["proj_ratio_sum"], ["proj_ratio_sum", "tokens"]])
def test_a_quotient_that_some_resamples_lack_has_no_interval(
    zero: list[str], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    place, folder = planted(tmp_path), tmp_path / FOLDER
    texts = pd.read_csv(folder / "per_text.csv")
    texts.loc[texts["text"] > 0, zero] = 0
    texts.to_csv(folder / "per_text.csv", index=False)
    total = texts.groupby(["split", "name"])[["proj_ratio_sum", "tokens"]].sum()
    mean = total["proj_ratio_sum"] / total["tokens"]
    table = pd.read_csv(folder / "projection_metrics.csv", index_col="name")
    table["selectivity_ratio"] = (mean["forget"] / mean["retain"]).drop("o")
    table.to_csv(folder / "projection_metrics.csv")
    found = selectivity.forget_over_retain(place, measure("selectivity_ratio"))
    assert found.value == pytest.approx(table["selectivity_ratio"].mean())
    assert found.unpaired == "undefined on some resamples" and not recwarn.list


@pytest.mark.parametrize("name", ["projection_metrics", "per_text"])
def test_a_row_that_stands_twice_is_refused(name: str, tmp_path: Path) -> None:
    place = planted(tmp_path)
    file = tmp_path / FOLDER / f"{name}.csv"
    table = pd.read_csv(file)
    pd.concat([table, table[table["name"] == "m"][:1]]).to_csv(file, index=False)
    if name == "per_text":
        found = selectivity.forget_over_retain(place, measure("selectivity_ratio"))
        assert "two rows" in found.unpaired
    else:
        with pytest.raises(Absent, match="two rows"):
            selectivity.forget_over_retain(place, measure("selectivity_ratio"))
