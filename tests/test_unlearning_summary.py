"""The table of unlearned models: rows per model, and mean and spread over seeds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from model_diffs.core.errors import BadInput
from model_diffs.unlearning.summary import over_seeds, paired_tests, table


def model(root: Path, name: str, hazard: float) -> Path:
    after = {"hazard_accuracy": hazard, "forget_NLL": 2.0, "retain_NLL": None}
    record = {"after": after, "seconds": 3.2, "peak_memory_bytes": 5e8}
    (root / name).mkdir()
    (root / name / "unlearning.json").write_text(json.dumps(record))
    return root / name


def test_seeds_of_an_entry_add_a_row_of_mean_and_standard_deviation(tmp_path: Path) -> None:
    seeds = [model(tmp_path, f"base__npo__seed{i}", hazard) for i, hazard in enumerate((0.2, 0.4))]
    folders = [*seeds, model(tmp_path, "base__rmu", 0.5)]
    head, *rows = (line.split() for line in table(folders, {}).splitlines())
    measured = ["hazard_accuracy", "forget_NLL"]
    assert head == ["model", *measured, "seconds", "GB"]
    assert [row[:2] for row in rows[:3]] == [
        ["base__npo__seed0", "0.200"],
        ["base__npo__seed1", "0.400"],
        ["base__rmu", "0.500"],
    ]
    # √((0.1² + 0.1²)/1): the standard deviation of a sample
    assert " ".join(rows[3]) == "base__npo: mean of 2 0.300 ± 0.141 2.000 ± 0.000 3 0.5"


def test_report_has_paired_tests_and_the_spread_over_seeds(tmp_path: Path) -> None:
    folders = [model(tmp_path, f"base__npo__seed{i}", 0.2 + 0.2 * i) for i in range(2)]
    alone = model(tmp_path, "base__rmu", 0.5)
    draw = np.random.default_rng(0)
    before = {"forget": draw.normal(2, 0.5, 40).tolist(), "retain": [1.0, 2.0], "text": []}
    change = draw.normal(1.5, 0.5, 40)
    after = {"forget": (before["forget"] + change).tolist(), "retain": [1.0, 2.5], "text": []}
    run = {"arguments": {"seed": 1}, "held_out_NLL": {"before": before, "after": after}}
    forget, retain = paired_tests(run).splitlines()
    t = stats.ttest_rel(after["forget"], before["forget"])
    assert f"forget_NLL: {change.mean():+.3f}" in forget and f"t = {t.statistic:.2f}" in forget
    low, high = (float(x) for x in re.findall(r"\((\S+) – (\S+),", forget)[0])
    half = 1.96 * change.std(ddof=1) / 40**0.5
    assert (low, high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.05)
    assert "over 2 texts" in retain
    assert "no text" in paired_tests({"arguments": {}})
    assert over_seeds(folders[0]).startswith("2 seeds")
    assert "0.300 ± 0.141" in over_seeds(folders[1])
    assert over_seeds(alone).startswith("…")


def test_results_stand_beside_models_and_failed_ones_need_no_folder(tmp_path: Path) -> None:
    made = [model(tmp_path, name, 0.2) for name in ("base__cb", "base__cb_lat")]
    again = model(tmp_path, "base__npo", 0.9)  # failed, with the numbers of an earlier run
    folders = [*made, tmp_path / "base__rmu", again]
    results = ("done", "skipped", "failed", "failed")
    found = table(folders, dict(zip(folders, results, strict=True)))
    rows = [line.split()[:3] for line in found.splitlines()[1:]]
    assert rows == [
        ["base__cb", "done", "0.200"],
        ["base__cb_lat", "skipped", "0.200"],
        ["base__rmu", "failed", "–"],
        ["base__npo", "failed", "–"],
    ]
    assert found.splitlines()[-1].split()[2:] == ["–"] * 4


def test_folder_without_a_record_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no unlearning\.json"):
        table([tmp_path / "nowhere"], {})
