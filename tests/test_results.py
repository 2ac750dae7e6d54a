"""Result folders: names, completeness, atomic commit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_diffs.core import naming, results
from model_diffs.core.errors import BadInput
from model_diffs.core.results import PlannedRun


class Row(NamedTuple):
    layer: int
    value: float | None


def plan(folder: Path, **arguments: Any) -> PlannedRun:
    return PlannedRun(folder, "a to b", {"tol": 0.001, **arguments})


def write(planned: PlannedRun, *inputs: Path) -> None:
    with results.open_run(planned) as run:
        run.reads(*inputs)
        run.table("values", [Row(0, 1.5), Row(1, None)])


# ── names ─────────────────────────────────────────────────────────────────────────────────────────


def test_labels_of_hub_models_and_folders(tmp_path: Path) -> None:
    assert naming.model_label("org/name") == "org_name"
    assert naming.model_label("org/name@v1") == "org_name@v1"
    assert naming.model_label("./models/miniature-base/") == "miniature-base"
    (tmp_path / "base__ga" / "unlearned_model").mkdir(parents=True)
    assert naming.model_label(str(tmp_path / "base__ga" / "unlearned_model")) == "base__ga"
    assert naming.comparison_label("org/a", "./models/b") == "org_a__to__b"


@pytest.mark.parametrize("model", ["", " ", "/", "a\nb", "a\x00b", ".hidden"])
def test_refuses_a_name_that_is_not_a_folder_name(model: str) -> None:
    with pytest.raises(BadInput):
        naming.model_label(model)


@settings(deadline=None)  # other work may slow an example down
@given(st.text(max_size=40))
def test_no_label_leaves_its_folder(model: str) -> None:
    try:
        label = naming.model_label(model)
    except BadInput:
        return
    assert "/" not in label and label not in ("", ".", "..")


# ── complete, stale, missing ──────────────────────────────────────────────────────────────────────


def test_a_written_result_is_complete_and_loads_with_pandas(tmp_path: Path) -> None:
    planned = plan(tmp_path / "step")
    assert results.state(planned).status == "missing"
    write(planned)
    assert results.state(planned) == ("complete", "")
    table = pd.read_csv(tmp_path / "step" / "values.csv")
    assert table.value.isna().tolist() == [False, True]


def test_a_changed_argument_makes_it_stale_and_is_named(tmp_path: Path) -> None:
    write(plan(tmp_path / "step"))
    found = results.state(plan(tmp_path / "step", tol=0.01))
    assert found == ("stale", "--tol was 0.001, is 0.01")


@pytest.mark.parametrize(("was", "now"), [(["one"], ["one", "two"]), (None, "one"), ("one", None)])
def test_a_longer_list_of_models_makes_it_stale(tmp_path: Path, was: object, now: object) -> None:
    write(plan(tmp_path / "step", models=was))
    found = results.state(plan(tmp_path / "step", models=now))
    assert found == ("stale", f"--models was {was}, is {now}")


def test_a_changed_input_or_a_lost_output_makes_it_stale(tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text("one")
    planned = plan(tmp_path / "step")
    write(planned, source)
    source.write_text("two")
    assert results.state(planned).status == "stale"
    write(planned, source)
    assert results.state(planned).status == "complete"
    source.unlink()
    assert results.state(planned).status == "complete", "a result outlives what it was made from"
    (tmp_path / "step" / "values.csv").unlink()
    assert results.state(planned) == ("stale", "values.csv is gone")


def test_equal_bytes_are_complete_whatever_their_times(tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text("one")
    planned = plan(tmp_path / "step")
    write(planned, source)
    for file in (source, tmp_path / "step/values.csv"):
        os.utime(file, ns=(1, 1))
    assert results.state(planned).status == "complete"
    shutil.copytree(tmp_path, tmp_path.with_name("copy"), copy_function=shutil.copyfile)
    copied = plan(tmp_path.with_name("copy") / "step")
    assert results.state(copied).status == "complete"


@pytest.mark.parametrize("name", ["input.txt", "step/values.csv"])
@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-1] + b"#"])
def test_other_bytes_are_stale_even_with_their_time_restored(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    source, file = tmp_path / "input.txt", tmp_path / name
    source.write_text("one")
    write(plan(tmp_path / "step"), source)
    was = file.stat()
    file.write_bytes(damage(file.read_bytes()))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert results.state(plan(tmp_path / "step")).status == "stale"


def test_verify_reads_what_neither_size_nor_time_tells(tmp_path: Path, monkeypatch: Any) -> None:
    write(plan(tmp_path / "step"))
    record = tmp_path / "step" / "run.json"
    content = json.loads(record.read_text())
    content["outputs"][0]["sha256"] = "0" * 64  # as on a disk that lost a bit
    record.write_text(json.dumps(content))
    assert results.state(plan(tmp_path / "step")).status == "complete"
    assert results.state(plan(tmp_path / "step"), verify=True).status == "stale"
    monkeypatch.setenv(results.VERIFY, "1")
    assert results.state(plan(tmp_path / "step")).status == "stale"


def test_a_result_of_another_version_of_its_step_is_stale(tmp_path: Path) -> None:
    write(plan(tmp_path / "step"))
    found = results.state(replace(plan(tmp_path / "step"), version=2))
    assert found == ("stale", "it is of version 1 of the step, not 2")


def test_results_move_with_their_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "input.txt").write_text("one")
    write(plan(tmp_path / "old" / "out" / "step"), tmp_path / "old" / "input.txt")
    (tmp_path / "old").rename(tmp_path / "new")
    assert results.state(plan(tmp_path / "new" / "out" / "step")).status == "complete"


ODD = [
    "{",
    "[]",
    "null",
    '"x"',
    "7",
    "[" * 10_000,
    '{"arguments": []}',
    '{"arguments": {}, "inputs": null}',
]
ODD += [
    '{"arguments": {}, "outputs": ["values.csv"]}',
    '{"arguments": {}, "inputs": [{"path": 1}]}',
]


@pytest.mark.parametrize("text", ODD)
def test_an_odd_record_is_stale_and_its_result_made_again(tmp_path: Path, text: str) -> None:
    write(plan(tmp_path / "step"))
    (tmp_path / "step" / "run.json").write_text(text)
    planned = replace(plan(tmp_path / "step"), script="step.py")
    assert results.state(planned).status == "stale"
    assert results.pending([planned]) == [planned]
    write(planned)
    assert results.state(planned).status == "complete"


def test_result_of_another_model_of_the_same_name_is_stale(tmp_path: Path) -> None:
    with results.open_run(plan(tmp_path / "step", model_b="one/model")) as run:
        run.record(models={"one/model": {"bytes": 1}})
    found = results.state(plan(tmp_path / "step", model_b="two/model"))
    assert found == ("stale", "it is of one/model, not of two/model")


def test_a_result_of_another_hub_model_in_one_folder_is_stale(tmp_path: Path) -> None:
    """Files of the hub's cache are in neither model's folder, whatever the record calls it."""
    snapshot = tmp_path / "cache" / "model.safetensors"
    snapshot.parent.mkdir()
    snapshot.write_text("weights")
    with results.open_run(plan(tmp_path / "step", model="org/one")) as run:
        run.reads(snapshot)
        run.record(models={"base": {"bytes": 7}})
    assert results.state(plan(tmp_path / "step", model="org/one")).status == "complete"
    assert results.state(plan(tmp_path / "step", model="org/two")).status == "stale"


def test_a_moved_model_is_recognised_and_a_changed_one_is_not(tmp_path: Path) -> None:
    weights = tmp_path / "here" / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("weights")
    old, new = str(weights.parent), str(tmp_path / "there" / "model")
    write(plan(tmp_path / "step", model_b=old), weights)
    (tmp_path / "here").rename(tmp_path / "there")
    assert results.state(plan(tmp_path / "step", model_b=new)).status == "complete"
    (tmp_path / "there" / "model" / "model.safetensors").write_text("other weights")
    assert results.state(plan(tmp_path / "step", model_b=new)).status == "stale"


def test_a_failed_step_of_a_pipeline_is_noted_until_it_succeeds(
    tmp_path: Path, monkeypatch: Any
) -> None:
    planned = plan(tmp_path / "step")
    results.note_failure([planned], "by hand, nothing is noted")
    assert results.read_failure(planned.folder) == {} and not list(tmp_path.iterdir())
    monkeypatch.setenv(results.INVOCATION, "study-1")
    results.note_failure([planned], "out of memory")
    assert results.read_failure(planned.folder)["reason"] == "out of memory"
    write(planned)
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_one_model_may_be_named_by_two_paths(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write(plan(tmp_path / "step", model_b="./models/m"))
    assert results.state(plan(tmp_path / "step", model_b="models/m")).status == "complete"


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def test_an_error_keeps_the_earlier_result_and_leaves_no_files(tmp_path: Path) -> None:
    planned = plan(tmp_path / "step")
    write(planned)
    before = (tmp_path / "step" / "values.csv").read_bytes()
    with pytest.raises(KeyboardInterrupt), results.open_run(planned) as run:
        run.table("values", [Row(0, 9.0)])
        raise KeyboardInterrupt
    assert (tmp_path / "step" / "values.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_nan_in_rows_is_an_error_and_none_an_empty_cell(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="column value"),
        results.open_run(plan(tmp_path / "step")) as run,
    ):
        run.table("values", [Row(0, float("nan"))])


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadInput, match="cannot be written"),
        results.open_run(plan(tmp_path / "file" / "step")),
    ):
        pass


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    write(plan(tmp_path / "step"))
    assert not (tmp_path / "step").exists()


def test_run_json_has_the_facts_and_no_secret(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    write(plan(tmp_path / "step"))
    text = (tmp_path / "step" / "run.json").read_text()
    record = json.loads(text)
    assert {"command", "arguments", "seconds", "peak_memory_bytes", "python", "packages"} <= set(
        record
    )
    assert [entry["path"] for entry in record["outputs"]] == ["values.csv"]
    assert "hf_secret" not in text and os.uname().nodename not in text


KILLED = """
import sys, time
from pathlib import Path
from model_diffs.core import results
planned = results.PlannedRun(Path(sys.argv[1]), "x", {})
with results.open_run(planned) as run:
    (run.path / "half.csv").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_is_missing_and_its_files_are_removed_later(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    planned = PlannedRun(folder, "x", {})
    assert not folder.exists() and results.state(planned).status == "missing"
    assert len(list(tmp_path.iterdir())) == 1
    write(planned)
    assert [p.name for p in tmp_path.iterdir()] == ["step"]
    process.communicate()


def test_a_result_replaces_only_its_own_folder(tmp_path: Path) -> None:
    foreign = tmp_path / "mine"
    (foreign / "sub").mkdir(parents=True)
    (foreign / "sub" / "notes.txt").write_text("kept")
    planned = plan(foreign)
    for force in (False, True):
        with pytest.raises(BadInput, match=r"holds files but no run\.json"):
            results.pending([planned], force)
    with pytest.raises(BadInput, match="name a new folder"), results.open_run(planned):
        pass
    assert (foreign / "sub" / "notes.txt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    (tmp_path / "file").write_text("kept")
    with pytest.raises(BadInput, match="is a file"):
        results.pending([plan(tmp_path / "file")])

    outer, inner = plan(tmp_path / "outer"), plan(tmp_path / "outer" / "layer_2")
    write(outer)
    write(inner)
    assert results.pending([outer]) == []  # nothing is replaced where it is complete
    with pytest.raises(BadInput, match="holds another result, layer_2"):
        results.pending([outer], force=True)
    assert results.state(inner).status == "complete"
    (tmp_path / "empty").mkdir()
    write(plan(tmp_path / "empty"))


def test_no_script_replaces_what_another_one_wrote(tmp_path: Path) -> None:
    model = replace(plan(tmp_path / "model"), script="create.py")
    write(model)
    kept = (tmp_path / "model/values.csv").read_bytes()
    other = replace(plan(tmp_path / "model", tol=1), script="measure.py", named=True)
    for force in (False, True):
        with pytest.raises(BadInput, match=r"was written by create\.py"):
            results.pending([other], force)
    (tmp_path / "model/run.json").write_text("[]")
    with pytest.raises(BadInput, match="cannot be read"):
        results.pending([other])
    assert (tmp_path / "model/values.csv").read_bytes() == kept


def test_no_result_replaces_what_it_is_made_from(tmp_path: Path) -> None:
    write(replace(plan(tmp_path / "a/model"), script="train.py"))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for named in ("a/model", "a/model/values.csv", "link/model"):
        again = plan(tmp_path / "a/model", tol=1)
        again = replace(again, script="train.py", reads=(str(tmp_path / named),))
        with pytest.raises(BadInput, match="which this run reads"):
            results.pending([again], force=True)
