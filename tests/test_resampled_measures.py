"""How the resamples of a measure are read from the values that a step kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_outroot import FOLDER, MATRICES, SEED, Outroot, absent

from model_diffs.core.measure import Measure
from model_diffs.core.tables import Place
from model_diffs.report import reductions
from model_diffs.stats.estimates import Estimate
from model_diffs.stats.intervals import document_weights


@pytest.fixture
def out(tmp_path: Path) -> Outroot:
    return Outroot(tmp_path)


TEXTS = 12
DRAWN = document_weights(TEXTS, SEED)


def per_text(seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    order = draw.permutation(TEXTS)  # not as in the file of texts
    return {
        "split": "forget",
        "text": order,
        "x": np.round(draw.uniform(1, 2, TEXTS), 6),
        "tokens": draw.integers(1, 9, TEXTS),
    }


def in_order(columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(columns).sort_values("text")


def check_draws(found: Estimate, expected: np.ndarray, units: str = "texts") -> None:
    assert found.sample is not None, found.unpaired
    assert found.sample.units == units
    np.testing.assert_allclose(found.sample.resampled, expected, rtol=1e-12)
    np.testing.assert_allclose(found.ends, np.percentile(expected, [2.5, 97.5]), rtol=1e-12)


def test_texts_are_drawn_in_their_order_with_their_tokens(out: Outroot) -> None:
    out.table("t", per_text())
    rows = in_order(per_text())
    x, tokens = rows["x"].to_numpy(), rows["tokens"].to_numpy()
    found = out.read(where={"split": "forget"}, paired_by="text")
    assert found.value == pytest.approx((x * tokens).sum() / tokens.sum())
    check_draws(found, DRAWN @ (x * tokens) / (DRAWN @ tokens))
    alike = out.read(where={"split": "forget"}, paired_by="text", weights=())
    assert alike.value == pytest.approx(x.mean())
    check_draws(alike, DRAWN @ x / TEXTS)
    assert alike.sample is not None and found.sample is not None
    assert alike.sample.identity != found.sample.identity, "other weights are another sample"


def test_both_sides_of_a_quotient_are_drawn_together(out: Outroot) -> None:
    sides = {name: per_text(seed) | {"model": name} for name, seed in (("base", 1), ("npo", 2))}
    out.table("t", pd.concat([pd.DataFrame(one) for one in sides.values()]).to_dict("list"))
    measure = {"where": {"model": "{changed}"}, "over": {"model": "{base}"}, "paired_by": "text"}
    a, b = (in_order(sides[name])["x"].to_numpy() for name in ("base", "npo"))
    check_draws(out.read(**measure, weights=()), DRAWN @ b / (DRAWN @ a))
    n, m = (in_order(sides[name])["tokens"].to_numpy() for name in ("base", "npo"))
    means = DRAWN @ (b * m) / (DRAWN @ m), DRAWN @ (a * n) / (DRAWN @ n)
    check_draws(out.read(**measure), means[0] / means[1])


def test_values_per_text_are_means_over_the_layers_of_the_measure(out: Outroot) -> None:
    draw = np.random.default_rng(3)
    values = draw.uniform(size=(TEXTS, 4))
    tokens = draw.integers(1, 9, TEXTS)
    kept = [
        {"layer": layer, "text": text, "split": "forget", "x": values[text, layer],
         "tokens": tokens[text]}
        for layer in (2, 0, 3, 1) for text in draw.permutation(TEXTS)
    ]  # fmt: skip
    other = [{**row, "split": "retain", "x": 0.0} for row in kept]
    out.table("kept", pd.DataFrame([*other, *kept]).to_dict("list"))
    cells = (values * tokens[:, None]).sum(0) / tokens.sum()
    out.table("t", {"layer": range(4), "split": "forget", "x": cells})
    found = out.read(where={"split": "forget"}, layers="states", paired_by="text", kept="kept")
    mean = values[:, 1:].mean(1)
    assert found.value == pytest.approx((mean * tokens).sum() / tokens.sum())
    check_draws(found, DRAWN @ (mean * tokens) / (DRAWN @ tokens))
    out.table("kept", pd.DataFrame(kept[:-1]).to_dict("list"))
    found = out.read(where={"split": "forget"}, layers="states", paired_by="text", kept="kept")
    assert found.sample is None and "not one row of every layer" in found.unpaired


def test_resamples_of_a_step_are_taken_as_they_are(out: Outroot) -> None:
    """From the step's file to the interval that the page shows."""
    draw = np.random.default_rng(4)
    resampled = draw.normal(1.0, 0.2, 50)
    order = draw.permutation(50)
    out.table("t", {"layer": range(3), "x": [9.0, 0.5, 1.5]})
    out.table("kept", {"resample": order, "moved": resampled[order]})
    measure = {"layers": "states", "paired_by": "resample", "kept": "kept", "kept_column": "moved"}
    found = out.read(**measure)
    assert found.value == 1.0
    check_draws(found, resampled)
    other = out.read(**measure)
    assert found.sample is not None and found.sample == other.sample
    out.table("t", {"layer": range(3), "x": [9.0, 0.5, 1.5]}, seed=43)
    other = out.read(**measure)
    assert found.sample != other.sample, "resamples of another seed are of other draws"


def test_the_difference_to_the_base_keeps_the_draws(out: Outroot) -> None:
    draws = {name: np.random.default_rng(i).normal(size=40) for i, name in enumerate("ab")}
    for folder, which, value in (("base/step", "a", 0.5), ("npo/step", "b", 0.75)):
        out.table("t", {"layer": range(2), "x": [9.0, value]}, folder)
        kept = {"layer": 1, "resample": range(40), "x": draws[which]}
        out.table("kept", kept, folder)
    measure = {"layers": "states", "paired_by": "resample", "kept": "kept", "less_base": True}
    found = out.read("npo/step", **measure)
    assert found.value == 0.25 and found.source.path == "npo/step/t.csv"
    assert found.source.rows == "mean over layer=1, minus that of base/step/t.csv"
    check_draws(found, draws["b"] - draws["a"])
    out.table("kept", {"layer": 1, "resample": range(39), "x": draws["a"][:39]}, "base/step")
    found = out.read("npo/step", **measure)
    assert found.value == 0.25 and "not the same resamples" in found.unpaired
    out.table("t", {"layer": range(3), "x": [9.0, 1.0, 2.0]}, "base/step")
    assert absent(out, "other texts, or with other options", folder="npo/step", **measure).defect


def test_questions_of_an_entity_weigh_by_their_number(out: Outroot) -> None:
    draw = np.random.default_rng(5)
    entity = [f"e{i:02}" for i in range(11) for _ in range(1 + i % 3)]
    correct = draw.integers(0, 2, len(entity))
    ids = [f"q{i}" for i in range(len(entity))]
    out.table("kept", {"id": ids, "entity": entity, "domain": "d", "x": correct, "layer": 1})
    out.table("t", {"domain": ["d"], "x": [correct.mean()], "low": [0.1], "high": [0.9]})
    found = out.read(where={"domain": "d"}, paired_by="entity", kept="kept")
    assert found.ends == (0.1, 0.9), "the interval of the cell, where there is one"
    groups = pd.DataFrame({"entity": entity, "x": correct}).groupby("entity")["x"]
    drawn = document_weights(11, SEED)
    expected = drawn @ groups.sum().to_numpy() / (drawn @ groups.count().to_numpy())
    assert found.sample is not None and found.sample.units == "entities"
    np.testing.assert_allclose(found.sample.resampled, expected)
    # Of the questions' file, not of the texts: they are the same wherever texts differ.
    names = []
    for sampled, texts in (("q", "a"), ("q", "b"), ("other", "b")):
        folder = f"{texts}__to__{sampled}/step"
        kept = {"id": ids, "entity": entity, "domain": "d", "x": correct, "layer": 1}
        out.table("kept", kept, folder, sampled=sampled)
        cell = {"domain": ["d"], "x": [correct.mean()]}
        out.table("t", cell, folder, sampled=sampled)
        if texts == "b":
            record = json.loads((out.root / folder / "run.json").read_text())
            record["texts"] = {"forget": {"sha256": "b"}}
            (out.root / folder / "run.json").write_text(json.dumps(record))
        found = out.read(folder, where={"domain": "d"}, paired_by="entity", kept="kept")
        assert found.sample is not None
        names.append(found.sample.identity)
    assert names[0] == names[1] != names[2]


def test_samples_pair_only_where_texts_seed_and_options_are_equal(out: Outroot) -> None:
    measure = {"where": {"split": "forget"}, "paired_by": "text", "options": ("top_k",)}

    def identity(columns: dict[str, Any], **arguments: Any) -> str:
        out.table("t", columns, **arguments)
        found = out.read(**measure)
        assert found.sample is not None
        return found.sample.identity

    first = identity(per_text(), top_k=5)
    assert first == identity(per_text() | {"x": 1.5}, top_k=5), "values do not matter"
    assert first != identity(per_text(), top_k=6)
    assert first == identity(per_text(), top_k=5, seed=43), "drawn with the report's seed"
    file = out.root / FOLDER / "run.json"
    record = json.loads(file.read_text())
    record["inputs"][0]["sha256"] = "other questions"
    file.write_text(json.dumps(record))
    same = out.read(**measure)
    assert same.sample is not None and same.sample.identity == first, "of texts alone"
    other = out.read(**measure, seed=SEED + 1)
    assert other.sample is not None and other.sample.identity != first
    assert first != identity(per_text(), top_k=5, sampled="other texts")
    assert first != identity(per_text() | {"tokens": 3}, top_k=5)
    assert first != identity(per_text() | {"text": np.arange(1, 13)}, top_k=5)


def test_rows_that_stand_twice_or_are_empty_are_refused(out: Outroot) -> None:
    twice = {**MATRICES, "name": ["a", "b", "b", "d"]}
    out.table("t", twice)
    assert absent(out, "two rows of one").defect
    out.table("t", twice, "base__to__base/step")
    assert absent(out, "two rows of one", folder="base__to__base/step", changed="base").defect
    out.table("t", MATRICES)
    out.table("sizes", {"name": ["a", "b", "c", "d", "d"], "s": 1}, "base__to__npo/other")
    assert absent(out, "two rows of one name", weights=("s",), weights_from="other/sizes").defect
    out.table("t", {**MATRICES, "x": [1.0, None, 3.0, 4.0]})
    assert absent(out, "line 3: no number in column x").defect


def test_rows_of_a_table_beside_kept_values_are_not_those_of_a_unit(out: Outroot) -> None:
    """Its own column of the unit's name says something else."""
    out.table("t", {"layer": range(3), "text": 0, "x": [9.0, 1.0, 2.0], "tokens": [1, 1, 9]})
    out.table("kept", {"text": range(TEXTS), "x": 1.5})
    found = out.read(layers="states", paired_by="text", kept="kept")
    assert found.value == 1.5 and found.source.rows == "mean over layer 1-2"
    assert found.sample is not None


def test_questions_are_drawn_in_the_order_of_their_file(out: Outroot) -> None:
    draw = np.random.default_rng(6)
    ids = [f"q{i}" for i in draw.permutation(TEXTS)]
    correct = draw.integers(0, 2, TEXTS)
    out.table("kept", {"id": ids, "domain": "d", "x": correct})
    out.table("t", {"domain": ["d"], "x": [correct.mean()]})
    found = out.read(where={"domain": "d"}, paired_by="question", kept="kept")
    check_draws(found, DRAWN @ correct / TEXTS, "questions")


def test_what_a_difference_to_the_base_needs_of_both(out: Outroot) -> None:
    measure = {"layers": "states", "paired_by": "resample", "kept": "kept", "less_base": True}
    measure |= {"options": ("C",), "folder": "npo/npo_step"}
    for folder, value, C in (("base/npo_step", 0.5, 1), ("npo/npo_step", 0.75, 1)):
        out.table("t", {"layer": range(2), "x": [9.0, value]}, folder, C=C)
        out.table("kept", {"layer": 1, "resample": range(40), "x": value}, folder, C=C)
    found = out.read(**measure)
    assert found.value == 0.25 and found.sample is not None
    assert found.source.rows.endswith("minus that of base/npo_step/t.csv")
    for folder in ("base/npo_step", "npo/npo_step"):
        kept = {"layer": 1, "resample": range(40), "x": [None] + [0.5] * 39}
        out.table("kept", kept, folder, C=1)
        found = out.read(**measure)
        assert (found.value, found.sample) == (0.25, None) and "no number" in found.unpaired
        out.table("kept", {"layer": 1, "resample": range(40), "x": 0.5}, folder, C=1)
    out.table("t", {"layer": range(2), "x": [9.0, 0.5]}, "base/npo_step", C=2)
    assert absent(out, "with other options", **measure).defect


def test_a_computation_of_its_own_gets_place_and_measure_of_a_result(out: Outroot) -> None:
    seen: list[tuple[Place, Measure]] = []
    source = reductions.Source("t.csv", "x", "")

    def compute(place: Place, measure: Measure) -> Estimate:
        seen.append((place, measure))
        return Estimate(4.0, source)

    assert absent(out, "not run|no result|not been", compute=compute) and not seen
    out.table("t", MATRICES)
    assert out.read(compute=compute) == Estimate(4.0, source)
    assert seen[0][0].folder == FOLDER and seen[0][1].compute is compute


def test_a_step_without_the_option_was_asked(out: Outroot) -> None:
    out.table("kept", {"id": [f"q{i}" for i in range(TEXTS)], "domain": "d", "x": 1.0})
    out.table("t", {"domain": ["d"], "x": [1.0]})
    file = out.root / FOLDER / "run.json"
    record = json.loads(file.read_text())
    del record["arguments"]["questions"]
    file.write_text(json.dumps(record))
    found = out.read(where={"domain": "d"}, paired_by="question", kept="kept")
    assert found.sample is not None
