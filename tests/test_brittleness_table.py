"""The study as one table: from the results of worlds that are written down here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import predict_brittleness
import write_predictors
from model_diffs.brittleness import analysis, table
from model_diffs.core import results, script
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.pipeline.studies import Study, read_study

STUDY = """
seeds = ["20{world}"]
results = "b/w{world}"
made_in = "./made/w{world}"
[worlds]
development = [1, 2]
locked = [3]
measure = "1"
attack = "14"
registration = "doc.md"
[prediction]
predictors = ["a"]
baseline = ["b"]
[models]
base = "./models/w{world}/base"
filtered = ["./models/w{world}/scrambled"]
control = "./models/w{world}/reseeded"
[unlearn.npo]
until = "hazard=0.30"
[unlearn.rmu]
until = "hazard=0.30"
[unlearn.dpo]
until = "hazard=0.30"
[unlearn.noise]
like = "npo"
"""
RATES = (1e-3, 2e-3)


def unlearned(world: int, name: str, reached: bool) -> None:
    folder = Path(f"made/w{world}/base__{name}")
    folder.mkdir(parents=True)
    look = {"at": 9, "tune": 0.3 if reached else 0.62, "general": None}
    found = {"method": name, "until": {"reached": reached, "looks": [look]}}
    found["losses"] = [{"lr": 0.5}, {"lr": 0.25}]
    (folder / "unlearning.json").write_text(json.dumps(found))


def attacked(world: int, label: str, area: float | None) -> None:
    """relearning.csv: the second rate is picked; without `area` no rate took."""
    folder = Path(f"outputs/b/w{world}/{label}/relearning")
    folder.mkdir(parents=True)
    rows = [
        {"arm": arm, "lr": lr, "picked": int(area is not None and lr == RATES[1] and step == 20),
         "took": int(area is not None), "step": step, "heldout_accuracy": 0.5 + step / 100,
         "area": 0.75 if lr == RATES[1] else 9,
         "area_over_filtered": (area or 0) + (0 if lr == RATES[1] and arm == "facts" else 9)}
        for arm in ("facts", "retain") for lr in RATES for step in (0, 20)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "relearning.csv", index=False)


def world(number: int) -> None:
    """npo recovers 0.4, rmu was not tested, dpo missed its target, noise is not attacked."""
    for name, reached in (("npo", True), ("rmu", True), ("dpo", False)):
        unlearned(number, name, reached)
    noise = Path(f"made/w{number}/base__noise")
    noise.mkdir()
    (noise / "unlearning.json").write_text(json.dumps({"method": "noise"}))
    attacked(number, "base__npo", 0.4)
    attacked(number, "base__rmu", None)
    folder = Path(f"outputs/b/w{number}/predictors")
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"model": ["npo", "rmu", "noise", "scrambled", "reseeded"]})
    rows = rows.assign(method="x", steps=3, a=np.arange(5.0), b=1.0, unmeasured=None)
    rows.to_csv(folder / "predictors.csv", index=False)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(STUDY)
    return read_study("study.toml")


def test_rows_have_roles_targets_and_parts(study: Study) -> None:
    world(1)
    world(3)
    rows, states = table.gather(study, Path("outputs"))
    own = rows[rows["world"] == 1].set_index("model")
    assert own["role"].to_dict() == {
        "npo": "removal", "rmu": "removal", "noise": "control", "scrambled": "deep",
        "reseeded": "control",
    }  # fmt: skip
    assert own.loc["npo", table.TARGET] == 0.4 and own[table.TARGET].notna().sum() == 1
    assert own.loc["npo", table.GAIN] == 0.25
    assert rows.groupby("part")["world"].unique().map(list).to_dict() == {
        "development": [1], "locked": [3],
    }  # fmt: skip
    became = {(one.world, one.model): one.status for one in states}
    assert became[1, "npo"] == "attacked" and became[1, "noise"] == "not attacked"
    assert became[1, "rmu"] == "not tested: the attack did not take"
    assert became[1, "dpo"] == "left out: ended at tune 0.62" and became[2, ""] == "not run"
    assert table.predictors_of(rows) == ["a", "b"]


def test_a_study_without_predictors_is_refused(study: Study) -> None:
    with pytest.raises(BadInput, match="has predictors: run the study"):
        table.gather(study, Path("outputs"))


def test_no_result_of_a_model_is_refused(study: Study) -> None:
    with pytest.raises(BadInput, match="holds no result of these models"):
        script.execute(write_predictors, ["--model-a", "base", "--model-b", "base__npo"])
    assert not Path("outputs/predictors").exists()


def test_another_list_of_models_is_another_table(study: Study) -> None:
    """A model that reached its target later is not passed over since the table is there."""

    def planned(*models: str) -> results.PlannedRun:
        words = ["--model-a", "base", "--model-b", *models]
        (found,) = write_predictors.planned_runs(parse(write_predictors.Options, words, None))
        return found

    with results.open_run(planned("base__npo")) as run:
        run.table("predictors", [{"model": "npo"}])
    assert results.state(planned("base__npo")).status == "complete"
    assert results.state(planned("base__npo", "base__rmu")).status == "stale"


# ── the script, and the same numbers by other code ────────────────────────────────────────────────


def planted() -> pd.DataFrame:
    """A table as docs/data has it: predictor `a` works, `b` does not."""
    draw, rows = np.random.default_rng(5), list[dict[str, Any]]()
    for number in (1, 2, 3):
        for family in range(9):
            a, b = draw.normal(size=2)
            row = {"world": number, "part": "locked" if number == 3 else "development"}
            row |= {"model": f"f{family}", "role": "removal", "method": "m", "status": "attacked"}
            rows.append(row | {"a": a, "b": b, table.TARGET: a + 0.2 * draw.normal() + number})
    return pd.DataFrame(rows)


def recomputed(rows: pd.DataFrame, column: str) -> float:
    """The registered statistic with pandas alone: within-world centring, one slope, rank()."""
    centred = rows.copy()
    known = rows["part"] == "development"
    spread = {}
    for family in rows["model"].unique():
        fitted = rows[known & (rows["model"] != family)]
        x = fitted[column] / fitted[column].std(ddof=0)
        x = x - x.groupby(fitted["world"]).transform("mean")
        y = fitted[table.TARGET]
        y = y - y.groupby(fitted["world"]).transform("mean")
        spread[family] = (x * y).sum() / ((x * x).sum() + 1.0) / fitted[column].std(ddof=0)
        centred.loc[rows["model"] == family, "score"] = spread[family] * (
            rows[column] - fitted[column].mean()
        )
    new = centred[~known]
    found = [own["score"].rank().corr(own[table.TARGET].rank()) for _, own in new.groupby("world")]
    return float(np.mean(found))


def test_the_script_s_statistic_is_that_of_other_code(study: Study) -> None:
    rows = planted()
    rows.to_csv("data.csv", index=False)
    words = ["--study", "study.toml", "--data", "data.csv"]
    script.execute(predict_brittleness, words)
    found = pd.read_csv("outputs/brittleness/prediction/primary.csv").set_index("statistic")
    rho, baseline = recomputed(rows, "a"), recomputed(rows, "b")
    assert found.loc["rho", "value"] == pytest.approx(rho) and rho > 0.8
    assert found.loc["rho_baseline", "value"] == pytest.approx(baseline)
    assert found.loc["gain", "value"] == pytest.approx(rho - baseline)
    assert Path("outputs/brittleness/prediction/brittleness.png").is_file()
    measures = pd.read_csv("outputs/brittleness/prediction/measures.csv").set_index("measure")
    assert abs(measures.loc["a", "rho"]) > abs(measures.loc["b", "rho"])
    settings = analysis.Settings(("a",), ("b",))
    again = analysis.primary(*(rows[rows["part"] == p] for p in ("development", "locked")),
                             settings)  # fmt: skip
    assert again.rho.value == pytest.approx(rho)


def test_there_is_a_verdict_once_all_locked_worlds_are_attacked(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, words = planted(), ["--study", "study.toml", "--data", "data.csv", "--force"]
    path = Path("outputs/brittleness/prediction/primary.csv")
    rows.to_csv("data.csv", index=False)
    script.execute(predict_brittleness, words)
    final = "confirmed" in {*pd.read_csv(path)["statistic"]}
    waiting = rows["part"].eq("locked") & rows["model"].eq(rows["model"].iloc[0])
    rows.loc[waiting, ["status", table.TARGET]] = ["not attacked", None]
    rows.to_csv("data.csv", index=False)
    capsys.readouterr()
    script.execute(predict_brittleness, words)
    assert "interim" in capsys.readouterr().out
    assert final and "confirmed" not in {*pd.read_csv(path)["statistic"]}


def test_choice_and_power_are_tables(study: Study) -> None:
    rows = planted()
    rows.assign(c=rows["b"] ** 2, d=rows["a"] * rows["b"]).to_csv("data.csv", index=False)
    words = ["--study", "study.toml", "--data", "data.csv"]
    script.execute(predict_brittleness, [*words, "--choose"])
    choice = pd.read_csv("outputs/brittleness/choice/choice.csv")
    assert choice["predictors"].iloc[0] == "a" and {*choice["size"]} == {1, 3}
    script.execute(predict_brittleness, [*words, "--power", "2"])
    power = pd.read_csv("outputs/brittleness/power/power.csv")
    assert (power["families"] == 9).all() and power["confirmed"].between(0, 1).all()


def test_a_damaged_table_is_refused(study: Study) -> None:
    Path("data.csv").write_text("world,model\n1,npo\n")
    given = parse(
        predict_brittleness.Options, ["--study", "study.toml", "--data", "data.csv"], None
    )
    with pytest.raises(BadInput, match=r"data.csv has no column"):
        predict_brittleness.read(given)
