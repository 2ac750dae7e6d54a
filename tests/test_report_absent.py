"""A report of tables that are not there, damaged, or of other texts: no number is made up."""

import itertools
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from planted_tables import (
    MEASURES,
    MODEL_FOLDERS,
    SCRIPTS,
    STEP_FOLDERS,
    Study,
    claims,
    comparison,
)

from model_diffs.report.assembling import assemble, signature_rows

FILTERED, NPO = "base__to__filtered", "base__to__npo"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("outputs")).everything()


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Study:
    shutil.copytree(study.root, tmp_path / "outputs")
    return Study(tmp_path / "outputs")


@pytest.mark.study
def test_each_step_alone_and_left_out_gives_the_same_numbers(copy: Study, tmp_path: Path) -> None:
    """Each step alone, and each step left out, gives the same numbers as all together."""
    whole = copy.read().values
    for folder in (*STEP_FOLDERS, *MODEL_FOLDERS):
        alone = tmp_path / "alone" / folder
        for place in copy.root.glob(f"*/{folder}"):
            shutil.copytree(place, alone / place.relative_to(copy.root))
        without = tmp_path / "without" / folder
        shutil.copytree(copy.root, without, ignore=shutil.ignore_patterns(folder))
        parts = [assemble(root, copy.comparisons, [], 42, SCRIPTS) for root in (alone, without)]
        for part in parts:
            assert part.values.items() <= whole.items(), folder
            assert [m.axis for m in part.measures] and signature_rows(part), folder
            axes = {axis.key for axis in part.axes if part.of_axis(axis.key)}
            assert {s.axis for s in part.sentences} <= axes | {""}
        keys = [{key for _, key in part.values} for part in parts]
        assert keys[0] | keys[1] >= set(MEASURES) - {"effective_rank", "top10_share"}, folder
    nothing = assemble(tmp_path / "empty", copy.comparisons, [], 42, SCRIPTS)
    assert not nothing.values and not nothing.measures and not nothing.missing


def test_one_comparison_without_filtered_model(study: Study) -> None:
    found = assemble(study.root, [comparison("npo")], [], 42, SCRIPTS)
    assert claims(found, "hazard_accuracy", "base") == ["below"]
    assert not claims(found, "hazard_accuracy", "filtered")
    assert any("No filtered model" in note for note in found.notes)
    assert len(signature_rows(found)) == 1


def test_no_conclusion_when_texts_differ(copy: Study) -> None:
    record = copy.root / NPO / "activation_stats/run.json"
    record.write_text(record.read_text().replace('"sha256": "forget"', '"sha256": "others"'))
    found = copy.read(4)
    assert not claims(found, "dh_forget", "filtered")
    assert claims(found, "dh_retain", "filtered") == ["above"]
    (line,) = found.missing
    assert (line.step, line.comparison) == (4, NPO) and "no conclusion" in line.reason


@pytest.mark.parametrize(
    ("folder", "option", "key"),
    [
        (f"{NPO}/lipschitzness", {"epsilon": 0.1}, "lipschitz_forget"),
        (f"{NPO}/row_space_projection", {"top_k": 5}, "row_space_selectivity"),
    ],
)
def test_no_conclusion_when_options_differ(
    copy: Study, folder: str, option: dict[str, float], key: str
) -> None:
    """A response to larger noise, or of more directions, is another number on the same texts."""
    path = copy.root / folder / "run.json"
    record = json.loads(path.read_text())
    record["arguments"] |= option
    path.write_text(json.dumps(record))
    found = copy.read(11, 12)
    assert not claims(found, key, "filtered")
    assert claims(found, key, "base"), "both sides of that are of one run"
    assert any(line.comparison == NPO and "no conclusion" in line.reason for line in found.missing)


def test_no_conclusion_when_questions_of_equal_ids_differ(copy: Study) -> None:
    for size, model in enumerate(("base", "filtered", "npo")):
        for folder in ("linear_probes", "relearning"):
            path = copy.root / model / folder / "run.json"
            record = json.loads(path.read_text())
            record["arguments"]["questions"] = "data/questions.jsonl"
            content = {"size": 900, "mtime_ns": 1, "ctime_ns": 1, "sha256": "12"[size == 2]}
            read = {"path": "../../data/questions.jsonl", **content}
            path.write_text(json.dumps(record | {"inputs": [read]}))
    found = copy.read(13, 14)
    assert claims(found, "hazard_accuracy", "base", FILTERED) == ["below"]
    assert not claims(found, "hazard_accuracy", "base")
    assert not claims(found, "hazard_inside", "filtered")
    assert not claims(found, "recovered_share", "filtered")


def test_attack_table_without_rows_is_a_failure(copy: Study) -> None:
    path = copy.root / "npo/relearning/relearning.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    found = copy.read(14)
    assert "no row" in found.reasons[NPO, "recovered_share"]
    assert any(line.step == 14 and "no row" in line.reason for line in found.missing)


def test_no_interval_when_values_per_text_do_not_give_the_number(copy: Study) -> None:
    path = copy.root / NPO / "activation_stats/per_text.csv"
    table = pd.read_csv(path)
    table["mean_dh_rel"] *= 1.01
    table.to_csv(path, index=False)
    found = copy.read(4)
    assert found.values[NPO, "dh_forget"].low is None
    assert not claims(found, "dh_forget", "filtered")
    assert all("run the step with --force" in line.reason for line in found.missing)
    assert {line.step for line in found.missing} == {4}


def _cell(text: str, line: int, column: int, cell: str) -> str:
    lines = text.splitlines()
    cells = lines[line].split(",")
    cells[column] = cell
    lines[line] = ",".join(cells)
    return "\n".join(lines)


DAMAGE = {
    "nan": lambda text: _cell(text, 2, -1, "nan"),
    "word": lambda text: _cell(text, 2, -1, "much"),
    "infinite": lambda text: _cell(text, 2, -1, "inf"),
    "no cell": lambda text: _cell(text, 2, -1, ""),
    "no column": lambda text: "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()),
    "empty": lambda text: "",
    "header alone": lambda text: text.splitlines()[0],
    "a row twice": lambda text: "\n".join([*text.splitlines(), text.splitlines()[1]]),
    "a row gone": lambda text: "\n".join(text.splitlines()[:2] + text.splitlines()[3:]),
}
TABLES = {
    "activation_stats/activation_stats.csv": ("dh_forget", 4),
    "lipschitzness/per_text.csv": ("jacobian_forget", 12),
    "param_stats/per_layer.csv": ("mlp_attention_ratio", 1),
}


@pytest.mark.parametrize(("table", "damage"), itertools.product(TABLES, DAMAGE))
def test_damaged_table_gives_no_number(copy: Study, table: str, damage: str) -> None:
    path = copy.root / NPO / table
    path.write_text(DAMAGE[damage](path.read_text()) + "\n")
    key, step = TABLES[table]
    found = copy.read(step)
    assert (NPO, key) not in found.values
    assert any(line.step == step and line.comparison == NPO for line in found.missing)
    assert (FILTERED, key) in found.values


def test_folder_without_record_gives_no_number(copy: Study) -> None:
    (copy.root / NPO / "activation_stats/run.json").unlink()
    assert (NPO, "dh_forget") not in copy.read(4).values


def test_no_interval_from_fewer_than_ten_texts(copy: Study) -> None:
    for label in (FILTERED, NPO):
        path = copy.root / label / "lipschitzness/per_text.csv"
        table = pd.read_csv(path)
        table[table["text"] < 5].to_csv(path, index=False)
    found = copy.read(12)
    assert found.values[NPO, "jacobian_forget"].low is None
    assert not claims(found, "jacobian_forget", "base")
    assert any("too few" in line.reason for line in found.missing)
