"""report.py on the miniature: numbers are the steps' own, and it is made again when it must be."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Study

from model_diffs.core import results
from model_diffs.core.command_line import parse
from model_diffs.core.step import load_script, load_steps, planned_runs
from model_diffs.report import assembling
from model_diffs.report.comparisons import BETWEEN, choose_comparisons, with_roles

pytestmark = [pytest.mark.xdist_group("study"), pytest.mark.study]

# Runs the script as from a shell, then says which heavy modules it loaded.
RUN = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as left:
    print("loaded:", sorted({"torch", "transformers", "sklearn"} & set(sys.modules)))
    raise
"""


def report(outroot: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run report.py on an outroot."""
    command = [sys.executable, "-c", RUN, str(ROOT / "report.py"), "--outroot", str(outroot)]
    return subprocess.run([*command, *words], capture_output=True, text=True, cwd=ROOT)


def copy(study: Study, folder: Path, *, keep: str = "*") -> Path:
    """The study's results without its caches, logs and report; of comparisons, those in `keep`."""
    outroot = folder / "outputs"
    outroot.mkdir()
    for one in sorted(study.outputs.iterdir()):
        if one.name in ("activation_cache", "logs", "report") or one.name.startswith("."):
            continue
        if BETWEEN in one.name and not one.match(keep):
            continue
        if one.is_dir():
            shutil.copytree(one, outroot / one.name)
    return outroot


class _Cells(HTMLParser):
    """Value by measure and model of the table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.measure = ""
        self.found: dict[tuple[str, int], str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.measure = given.get("data-measure") or self.measure
        if tag == "td" and "data-value" in given:
            self.found[self.measure, int(given["data-model"] or 0)] = given["data-value"] or ""


def test_numbers_of_page_csv_and_steps_agree(study: Study, tmp_path: Path) -> None:
    outroot = copy(study, tmp_path)
    done = report(outroot)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout and done.stderr == ""
    html = (outroot / "report/report.html").read_text()
    assert len(html.encode()) < 5_100_000
    table = pd.read_csv(outroot / "report/signature.csv").set_index("comparison")
    comparisons = with_roles(choose_comparisons(outroot))
    names = ["miniature-filtered", "npo", "rmu", "noise"]
    assert [one.short for one in comparisons] == names
    roles = ["filtered", "unlearned", "unlearned", "control"]
    assert [one.role for one in comparisons] == roles
    assert list(table.index) == [one.label for one in comparisons]

    cells = _Cells(html).found
    shown = {at: float(text) for at, text in cells.items() if text}
    for (measure, position), value in shown.items():
        assert value == table.loc[comparisons[position].label, measure]
    measures = {measure for measure, _ in cells}
    assert len(shown) == table[sorted(measures)].notna().sum().sum() > 20

    signature = assembling.assemble(outroot, comparisons, [], 42, load_steps())
    looked_up = 0
    for value in signature.values.values():
        rows = pd.read_csv(outroot / value.source.path)
        assert value.source.column in rows.columns, value.source
        # A source that names rows by their cells is one cell: it holds this very number.
        pairs_of = re.findall(r"(\w+)=([^,]+)", value.source.rows)
        if ", ".join(f"{k}={v}" for k, v in pairs_of) == value.source.rows and pairs_of:
            for column, wanted in pairs_of:
                rows = rows[rows[column].astype(str) == wanted]
            if len(rows) == 1:
                assert rows[value.source.column].iloc[0] == value.value, value.source
                looked_up += 1
    assert looked_up


def test_page_is_made_again_when_something_changed(study: Study, tmp_path: Path) -> None:
    outroot = copy(study, tmp_path, keep="*rmu")
    script = load_script(ROOT / "report.py")
    options = parse(script.Options, ["--outroot", str(outroot)], "")

    def state() -> results.State:
        (planned,) = planned_runs(script, options)
        return results.state(planned)

    assert state().status == "missing"
    assert report(outroot).returncode == 0
    assert state().status == "complete"
    before = (outroot / "report/report.html").read_bytes()
    assert "skipped" in report(outroot).stdout
    forced = report(outroot, "--force")
    assert forced.returncode == 0
    assert (outroot / "report/report.html").read_bytes() == before
    # A table that changed, a result that came, one that went.
    comparison = next(outroot.glob("*__to__*rmu"))
    table = comparison / "mlp_nullspace/mlp_nullspace_metrics.csv"
    os.utime(table, ns=(0, 0))
    assert state().status == "complete", "the same bytes"
    table.write_text(table.read_text().replace("0.1", "0.2"))
    assert state().status == "stale" and "--results" in state().reason
    report(outroot)
    assert state().status == "complete"
    away = tmp_path / "away"
    (comparison / "lipschitzness").rename(away)
    assert state().status == "stale" and "--results" in state().reason
    report(outroot)
    assert state().status == "complete"
    away.rename(comparison / "lipschitzness")
    assert state().status == "stale"


def test_page_of_any_subset_of_steps(study: Study, tmp_path: Path) -> None:
    outroot = copy(study, tmp_path, keep="*rmu")
    comparison = next(outroot.glob("*__to__*"))
    whole = sorted(folder.name for folder in comparison.iterdir())
    for folder in outroot.iterdir():
        if folder != comparison:
            shutil.rmtree(folder)
    kept = tmp_path / "kept"
    comparison.rename(kept)
    for names in (["param_stats"], ["activation_stats"], ["param_plots"], whole):
        shutil.rmtree(outroot)
        for name in names:
            shutil.copytree(kept / name, outroot / comparison.name / name)
        done = report(outroot)
        assert done.returncode == 0, (names, done.stderr)
        html = (outroot / "report/report.html").read_text()
        assert "not run" in html
        record = json.loads((outroot / "report/run.json").read_text())
        assert record["comparisons"] == [comparison.name]
        assert bool(record["measures"]) == (names != ["param_plots"])
        assert ("relative_change" in record["measures"]) == ("param_stats" in names)


def test_bad_input_is_one_line(study: Study, tmp_path: Path) -> None:
    for words, said in (
        ((), "holds no result"),
        (("--model-b", "x"), "--model-a"),
        (("--seed", "x"), "--seed"),
    ):
        done = report(tmp_path / "none", *words)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    outroot = copy(study, tmp_path, keep="*rmu")
    done = report(outroot, "--filtered", "other")
    assert done.returncode == 2 and "rmu" in done.stderr
    assert not (outroot / "report").exists()
