"""The page of the study of brittleness, from planted tables."""

import re
from pathlib import Path

import pandas as pd
import pytest

import report_brittleness
from model_diffs.attacks import lock
from model_diffs.brittleness import page
from model_diffs.core import script
from model_diffs.core.errors import BadInput

HOSTILE = "<script>alert(1)</script>"
STUDY = """
results = "b/w{world}"
[worlds]
development = [1]
locked = [2]
measure = "1"
attack = "14"
registration = "doc.md"
[models]
base = "./models/base"
"""
DOCUMENT = f"{lock.BEGIN}\n### Files\n{lock.END}\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result of step 22 as it writes it: 40 models of 5 locked worlds, confirmed."""
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(STUDY)
    Path("doc.md").write_text(DOCUMENT)
    folder = tmp_path / "prediction"
    folder.mkdir()
    same = {"target": "recovered_area", "worlds": 5, "models": 40, "part": "locked"}
    primary = [
        {"statistic": "rho", "value": 0.81, "low": 0.7, "high": 0.9, "p": 1e-4, **same},
        {"statistic": "rho_baseline", "value": 0.3, "low": -0.1, "high": 0.6, **same},
        {"statistic": "gain", "value": 0.51, "low": 0.2, "high": 0.8, **same},
        {"statistic": "confirmed", "value": 1.0, **same},
    ]
    pd.DataFrame(primary).assign(p_family=None).to_csv(folder / "primary.csv", index=False)
    row = {"models": 40, "rho": 0.5, "partial_rho": 0.4, "partial_rho_high": 0.8}
    row |= {"z_reseeded": 2.0, "z_benign": None, "auroc_deep": 0.75}
    measures = [
        {"measure": "works", "partial_rho_low": 0.1, "informative": True, **row},
        {"measure": HOSTILE, "partial_rho_low": -0.2, "informative": False, **row},
    ]
    pd.DataFrame(measures).to_csv(folder / "measures.csv", index=False)
    states = [
        {"world": 4, "model": "npo", "status": "attacked"},
        {"world": 4, "model": "prune", "status": "left out: ended at tune 0.18"},
    ]
    pd.DataFrame(states).to_csv(folder / "states.csv", index=False)
    (folder / page.IMAGE).write_bytes(b"\x89PNG")
    return folder


def written(source: Path) -> str:
    words = ["--study", "study.toml", "--prediction", str(source), "--force"]
    script.execute(report_brittleness, words)
    return Path("outputs/brittleness/page/brittleness.html").read_text(encoding="utf-8")


def test_the_result_every_measure_and_what_was_left_out_are_said(source: Path) -> None:
    lock.register(Path("doc.md"))
    html = written(source)
    assert "correlation of 0.81 (0.70 to 0.90), strength alone with 0.30; the difference is" in html
    assert "registered beforehand: confirmed." in html and "Read with care" not in html
    rows = {m[1]: m[0] for m in re.findall(r'<tr( class="alike")?><th scope="row">([^<]+)', html)}
    assert rows["works"] == "" and rows["&lt;script&gt;alert(1)&lt;/script&gt;"] == ' class="alike"'
    assert html.count(">uninformative<") == 1 and HOSTILE not in html
    assert "left out: ended at tune 0.18" in html and "Models attacked: 1." in html
    assert ">nan<" not in html.lower()


def test_a_changed_document_is_said(source: Path) -> None:
    assert "doc.md is not registered" in written(source)
    lock.register(Path("doc.md"))
    Path("doc.md").write_text(DOCUMENT.replace("### Files", "More.\n### Files"))
    assert "doc.md changed since" in written(source)


@pytest.mark.parametrize("value, said", [(0.0, "not confirmed."), (None, "No verdict")])
def test_the_verdict_is_the_table_s(source: Path, value: float | None, said: str) -> None:
    path = source / "primary.csv"
    table = pd.read_csv(path)
    table.loc[table["statistic"] == "confirmed", "value"] = value
    table.dropna(subset="value").to_csv(path, index=False)
    assert said in written(source)


def test_without_a_prediction_one_line_says_what_to_run(source: Path) -> None:
    (source / "measures.csv").unlink()
    with pytest.raises(BadInput, match=r"measures.csv: no such table; run predict_brittleness.py"):
        written(source)


def test_a_table_that_is_not_whole_is_refused(source: Path) -> None:
    for name, column, lost in (("primary", "statistic", "gain"), ("states", "status", None)):
        path = source / f"{name}.csv"
        table = pd.read_csv(path)
        kept = table.drop(columns=column) if lost is None else table[table[column] != lost]
        kept.to_csv(path, index=False)
        with pytest.raises(BadInput, match=f"{name}.csv has no .*{lost or column}"):
            written(source)
        table.to_csv(path, index=False)
    assert "0.0001" in written(source)
