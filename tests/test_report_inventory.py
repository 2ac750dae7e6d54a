"""What is found under an outroot: comparisons, states, failures, conditions; numbers as written."""

import json
from pathlib import Path

import pytest

from model_diffs.core import results as runs
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun
from model_diffs.core.script import execute
from model_diffs.core.step import load_script, load_steps
from model_diffs.report import comparisons, conditions, formatting, inventory

A, B, C = "models/base", "models/filtered", "models/base__npo"
BOTH = [
    comparisons.comparison("base__to__base__npo", "base", "base__npo"),
    comparisons.comparison("base__to__filtered", "base", "filtered"),
]
SCRIPTS = load_steps()


VERSIONS = {one.step.folder: one.step.version for one in SCRIPTS}


def leave(outroot: Path, folder: str, arguments: dict[str, str], *reads: Path) -> Path:
    """What a step leaves: a table and its record."""
    owner, _, step = folder.partition("/")
    version = VERSIONS.get(step, 1)
    with runs.open_run(PlannedRun(outroot / folder, owner, arguments, version=version)) as run:
        run.table("table", [{"layer": 0, "value": 1.0}])
        run.reads(*reads)
        run.record(
            models={
                model: {"bytes": 4000, "config_sha256": "c" * 64} for model in arguments.values()
            },
            texts={"forget": {"path": "f.txt", "texts": 20, "sha256": "a" * 64}},
            tokens={"forget": 200},
            left_out={"forget": {"documents": 1, "tokens": 19}},
            device="cpu",
            dtype="fp32",
        )
    return outroot / folder


@pytest.fixture
def outroot(tmp_path: Path) -> Path:
    """Step 1 of two comparisons, step 13 of two models, and a folder that is no comparison."""
    root = tmp_path / "outputs"
    for label, changed in (("base__to__base__npo", C), ("base__to__filtered", B)):
        leave(root, f"{label}/param_stats", {"model_a": A, "model_b": changed})
    for label, model in (("base", A), ("filtered", B)):
        leave(root, f"{label}/linear_probes", {"model": model})
    (root / "notes__to__self").mkdir()
    return root


def states(outroot: Path) -> dict[str, tuple[str, str]]:
    """State and reason by folder."""
    return {
        one.folder.relative_to(outroot).as_posix(): (one.status, one.reason)
        for one in inventory.take_inventory(
            outroot, comparisons.choose_comparisons(outroot), SCRIPTS
        )
    }


def test_comparisons_are_found_by_their_records(outroot: Path) -> None:
    assert comparisons.choose_comparisons(outroot) == BOTH
    assert (
        comparisons.choose_comparisons(outroot, "models/base") == []
    )  # a hub id, as nothing is there
    assert comparisons.choose_comparisons(outroot, "./models/base") == BOTH
    assert comparisons.choose_comparisons(outroot, "./models/other") == []
    named = comparisons.choose_comparisons(
        outroot, "./models/base", ["./models/filtered", "./models/new"]
    )
    assert [pair.changed for pair in named] == ["filtered", "new"]
    with pytest.raises(BadInput, match="--model-a"):
        comparisons.choose_comparisons(outroot, None, ["./models/filtered"])


def test_base_label_may_contain_the_separator(tmp_path: Path) -> None:
    leave(tmp_path, "a__to__b__to__c/param_stats", {"model_a": "./x/a__to__b", "model_b": "./x/c"})
    leave(tmp_path, "org_m@v1__to__c/param_stats", {"model_a": "org/m@v1", "model_b": "./x/c"})
    assert comparisons.find_comparisons(tmp_path) == [
        comparisons.comparison("a__to__b__to__c", "a__to__b", "c"),
        comparisons.comparison("org_m@v1__to__c", "org_m@v1", "c"),
    ]
    with pytest.raises(BadInput, match="2 bases"):
        comparisons.choose_comparisons(tmp_path)


def test_roles_are_as_said_and_otherwise_from_names() -> None:
    found = comparisons.with_roles(BOTH)
    assert [(one.short, one.role) for one in found] == [
        ("filtered", "filtered"),
        ("npo", "unlearned"),
    ]
    for name in ("npo", "base__npo", "base__to__base__npo"):
        first, second = comparisons.with_roles(BOTH, name, ["filtered"])
        assert (first.short, first.role) == ("npo", "filtered")
        assert (second.short, second.role) == ("filtered", "control")
    for wrong in (("other", ()), (None, ("other",))):
        with pytest.raises(BadInput, match="no such changed model; there are: npo, filtered"):
            comparisons.with_roles(BOTH, *wrong)


def test_states_of_results(outroot: Path, tmp_path: Path) -> None:
    text = tmp_path / "forget.txt"
    text.write_text("one")
    models = {"model_a": A, "model_b": B}
    late = leave(outroot, "base__to__filtered/activation_stats", models, text)
    gone = leave(outroot, "base__to__filtered/mlp_nullspace", models)
    torn = leave(outroot, "base__to__filtered/lipschitzness", models)
    assert states(outroot)["base__to__filtered/activation_stats"] == ("complete", "")
    text.write_text("one and two")
    (gone / "table.csv").unlink()
    (torn / "run.json").write_text('{"label": ')
    found = states(outroot)
    assert found["base__to__filtered/activation_stats"][0] == "stale"
    assert "forget.txt changed;" in found["base__to__filtered/activation_stats"][1]
    assert found["base__to__filtered/mlp_nullspace"] == ("failed", "failed, table.csv is gone")
    assert found["base__to__filtered/lipschitzness"][0] == "failed"
    assert found["base__to__base__npo/lipschitzness"] == ("missing", "not run")
    assert found["base__npo/linear_probes"] == ("missing", "not run")
    assert "base__to__filtered/itda_diffing" not in found  # a study may do without
    results = inventory.take_inventory(outroot, BOTH, SCRIPTS)
    tables = inventory.files_of(results, ".csv")
    assert late / "table.csv" in tables and torn / "table.csv" not in tables
    missing = inventory.missing_of(results)
    assert len(missing) == sum(one.status != "complete" for one in results)
    assert {m.comparison for m in missing if m.step == 13} == {"base__to__base__npo"}


def test_noted_failures_are_shown(outroot: Path) -> None:
    made = outroot / "base__to__filtered/param_stats"
    unmade = outroot / "base__npo/linear_probes"
    for folder, content in (
        (unmade, json.dumps({"reason": "script.py: no such file <b>"})),
        (made, json.dumps({"reason": "Killed"})),
        (outroot / "base__to__filtered/lipschitzness", "{"),
        (outroot / "base__to__filtered/mlp_nullspace", "[]"),
    ):
        folder.parent.mkdir(exist_ok=True)
        runs.failure_record(folder).write_text(content)
    found = states(outroot)
    assert found["base__npo/linear_probes"] == ("failed", "failed, script.py: no such file <b>")
    stale = ("stale", "failed, Killed; an earlier result is shown")
    assert found["base__to__filtered/param_stats"] == stale
    assert found["base__to__filtered/lipschitzness"] == ("failed", "failed")
    assert found["base__to__filtered/mlp_nullspace"] == ("failed", "failed")
    assert found["filtered/linear_probes"] == ("complete", "")
    # A run that succeeds removes the note.
    leave(outroot, "base__to__filtered/param_stats", {"model_a": A, "model_b": B})
    assert states(outroot)["base__to__filtered/param_stats"] == ("complete", "")


def test_fingerprint_changes_with_results(outroot: Path) -> None:
    def seen() -> str:
        return inventory.fingerprint(outroot, inventory.take_inventory(outroot, BOTH, SCRIPTS))

    before = seen()
    assert before == seen()
    leave(outroot, "base__to__filtered/mlp_nullspace", {"model_a": A, "model_b": B})
    assert seen() != before


def test_order_of_models_makes_no_other_report_and_base_alone_makes_none(outroot: Path) -> None:
    script = load_script(Path(__file__).parents[1] / "report.py")
    words = ["--outroot", str(outroot), "--model-a", "./models/base", "--model-b"]
    changed = ["./models/filtered", "./models/base__npo"]
    orders = [parse(script.Options, [*words, *changed[::step]], "") for step in (1, -1)]
    assert script.planned_runs(orders[0]) == script.planned_runs(orders[1])
    # The base's own results are there; of the model that was named nothing is.
    leave(outroot, "base/linear_probes", {"model": A})
    with pytest.raises(BadInput, match="no result of these comparisons"):
        execute(script, [*words, "./models/mistyped"])
    assert not (outroot / "report").exists()


def test_conditions_are_those_of_the_records(outroot: Path) -> None:
    found = conditions.conditions(outroot, BOTH, inventory.take_inventory(outroot, BOTH, SCRIPTS))
    assert [(m["label"], m["id"], m["bytes"]) for m in found["models"]] == [
        ("base", A, 4000),
        ("base__npo", C, 4000),
        ("filtered", B, 4000),
    ]
    (text,) = found["texts"]
    assert (text["texts"], text["tokens"], [*text["steps"]]) == (20, 200, [1, 13])
    assert (text["texts_left_out"], text["tokens_left_out"]) == (1, 19)
    assert found["devices"] == ["cpu"] and found["dtypes"] == ["fp32"]
    assert len(found["runs"]) == 4
    assert found["runs"][0]["tables"] == ["table.csv"]


def test_sum_of_learning_rates_is_that_of_the_training_log(
    outroot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = Path(C) / "unlearning.json"
    log.parent.mkdir(parents=True)

    def sums() -> dict[str, float | None]:
        inventoried = inventory.take_inventory(outroot, BOTH, SCRIPTS)
        found = conditions.conditions(outroot, BOTH, inventoried)
        read = conditions.training_logs(found)
        rates = {one["label"]: one["sum_lr"] for one in found["models"]}
        assert read == ([log] if rates["base__npo"] else [])
        return rates

    log.write_text(json.dumps({"losses": [{"step": i, "lr": lr} for i, lr in enumerate((1, 0.5))]}))
    assert sums() == {"base": None, "base__npo": 1.5, "filtered": None}
    for wrong in ("", "[1]", '{"losses": [{"step": 1}]}', '{"losses": []}'):
        log.write_text(wrong)
        assert sums()["base__npo"] is None


def test_record_of_other_types_is_tolerated_or_a_failure(outroot: Path) -> None:
    record = outroot / "base__to__filtered/param_stats/run.json"
    odd = {
        "arguments": {"model_a": A, "model_b": 7},
        "models": [1],
        "texts": "all",
        "outputs": [],
        "inputs": [],
    }
    record.write_text(json.dumps(odd))
    results = inventory.take_inventory(outroot, BOTH, SCRIPTS)
    found = conditions.conditions(outroot, BOTH, results)
    assert len(found["runs"]) == 4
    # Words where numbers are due are not recorded; a record of no run's shape is a failure.
    record.write_text(json.dumps(odd | {"texts": {"forget": {"texts": "many"}}, "seconds": "a"}))
    found = conditions.conditions(outroot, BOTH, inventory.take_inventory(outroot, BOTH, SCRIPTS))
    assert {text["texts"] for text in found["texts"]} == {20, None}
    for wrong in ({"arguments": [1]}, {"outputs": 7}, {"inputs": [3]}, {"inputs": [{"path": 1}]}):
        record.write_text(json.dumps(odd | wrong))
        (one,) = (
            one
            for one in inventory.take_inventory(outroot, BOTH, SCRIPTS)
            if one.folder == record.parent
        )
        assert one.status == "failed", wrong


@pytest.mark.parametrize(
    ("value", "unit", "low", "high", "text", "interval"),
    [
        (0.8217, "ratio", 0.8143, 0.8288, "0.82", "0.81 to 0.83"),
        (1.0041, "ratio", 1.0012, 1.0079, "1.004", "1.001 to 1.008"),
        (12.345, "ratio", None, None, "12.3", ""),
        (0.000012, "ratio", None, None, "1.2e−5", ""),
        (0.0, "ratio", None, None, "0", ""),
        (-0.0625, "change", -0.1, 0.02, "−0.062", "−0.100 to +0.020"),
        (-0.0001, "change", None, None, "0.000", ""),
        (0.256, "accuracy", 0.18, 0.33, "0.26", "0.18 to 0.33"),
        (1.0, "accuracy", 1.0, 1.0, "1.00", "1.00 to 1.00"),
        (9.93, "rank", None, None, "9.9", ""),
        (40.0, "steps", None, None, "40", ""),
    ],
)
def test_numbers_are_rounded_as_documented(
    value: float, unit: str, low: float | None, high: float | None, text: str, interval: str
) -> None:
    assert formatting.number(value, unit, low, high) == (text, interval)


def test_spread_over_seeds_has_no_deviation_of_one_number() -> None:
    none = float("nan")
    assert formatting.spread(0.256, 0.031, "accuracy") == "0.26 ± 0.031"
    assert formatting.spread(-0.25, 0.5, "change") == "−0.25 ± 0.50"
    assert (formatting.spread(2.0, none, "rank"), formatting.spread(none, none, "rank")) == (
        *("2.0", "–"),
    )


def test_sizes_times_and_counts() -> None:
    assert [formatting.size(n) for n in (17, 4_166_976, 2.4e11, None)] == [
        *("17 B", "4.2 MB", "240 GB", "–"),
    ]
    assert [formatting.duration(s) for s in (0.914, 45.0, 600.0, 9000.0)] == [
        *("0.9 s", "45 s", "10 min", "2.5 h"),
    ]
    assert formatting.day("2026-11-21T07:56:03+0000") == "21 November 2026"
    assert formatting.day("yesterday") == "yesterday"
    assert formatting.exact(0.1 + 0.2) == repr(0.1 + 0.2) and formatting.exact(40.0) == "40"
