"""The worst case: what the search sees, what it finds, and that stopping changes nothing."""

import sys
from pathlib import Path
from typing import Any

import elicit_study
import pandas as pd
import pytest
import test_elicit
import tiny_models
from tiny_study import Study

from model_diffs.attacks import elicitation, registry, worst_case
from model_diffs.attacks.victim import Victim
from model_diffs.core.errors import BadInput

study = test_elicit.study  # the fixture
FLOOR = 0.15
NAMES = ("quantise", "noise", "few_shot", "interpolate")
STRENGTHS = {"few_shot": ("attack1", "general1")}


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    root = tmp_path_factory.mktemp("worst")
    base, changed = elicit_study.pair("gpt_neox", root)
    return elicit_study.victim(changed, root, base)


def search(victim: Victim, storage: Path, trials: int, floor: float = FLOOR) -> Any:
    pytest.importorskip("optuna")
    attacks = [registry.load(name) for name in NAMES]
    return worst_case.search(victim, attacks, STRENGTHS, trials, floor, storage)


def trials(storage: Path) -> list[tuple[Any, ...]]:
    import optuna

    (name,) = optuna.get_all_study_names(f"sqlite:///{storage}")
    found = optuna.load_study(study_name=name, storage=f"sqlite:///{storage}").trials
    return [
        (one.user_attrs["attack"], one.user_attrs["strength"], one.user_attrs["general"], one.value)
        for one in found
        if one.value is not None
    ]


def test_the_best_allowed_setting_is_found_without_held_out_questions_also_after_a_stop(
    victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worst_case, "STARTUP", 3)
    asked: list[list[str]] = []
    measure = elicitation.measure

    def spy(victim: Victim, *given: Any) -> Any:
        asked.append([*victim.questions])
        return measure(victim, *given)

    monkeypatch.setattr(elicitation, "measure", spy)
    found = search(victim, tmp_path / "s.sqlite3", 10)
    assert all(one == ["tune", "general"] for one in asked[:-1])
    assert asked[-1] == [*elicit_study.COUNTS] == [*victim.questions]
    every = trials(tmp_path / "s.sqlite3")
    assert len(every) == found.trials == 10
    allowed = [one for one in every if one[2] > FLOOR]
    assert 0 < len(allowed) == found.allowed
    assert elicitation.tune(found.tried) == max(one[3] for one in allowed)
    assert elicitation.kept(found.tried, FLOOR)
    heldout = float(found.tried.accuracy["heldout"].mean)
    assert found.optimism == pytest.approx(elicitation.tune(found.tried) - heldout)
    names = {one[0] for one in every}
    assert names == {"quantise", "noise", "few_shot"}, "interpolate reads the base"
    assert len({one[1] for one in every if one[0] == "noise"}) > 2, "between the default strengths"
    # Stopped after three trials, killed in the fourth: it goes on as if it had not been.
    import optuna

    again = tmp_path / "again.sqlite3"
    search(victim, again, 3)
    (name,) = optuna.get_all_study_names(f"sqlite:///{again}")
    optuna.load_study(study_name=name, storage=f"sqlite:///{again}").ask()
    assert search(victim, again, 6).trials == 6 and trials(again) == every[:6]
    assert search(victim, again, 5).trials == 5 and len(trials(again)) == 6, "five are read again"


def test_without_an_allowed_setting_there_is_no_worst_case(victim: Victim, tmp_path: Path) -> None:
    assert search(victim, tmp_path / "s.sqlite3", 3, floor=0.999) is None


def test_a_file_that_holds_no_search_is_refused(victim: Victim, tmp_path: Path) -> None:
    (tmp_path / "s.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(BadInput, match="remove it"):
        search(victim, tmp_path / "s.sqlite3", 3)


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BadInput, match="uv sync --extra search"):
        worst_case.check_installed()


def test_the_worst_case_is_read_on_held_out_questions_over_the_filtered_model(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    models = (str(study.root / "filtered"), study.model_b)
    given = test_elicit.arguments(study, *models, attacks=("quantise", "noise"), strengths=None)
    study.run("elicit.py", *given, "--worst-case", "4", "--outroot", str(tmp_path))
    said = capsys.readouterr().out
    read = {}
    for model in ("filtered", "base__rmu"):
        folder = tmp_path / model / "elicitation"
        (row,) = pd.read_csv(folder / "worst_case.csv").to_dict("records")
        single = pd.read_csv(folder / "per_question.csv")
        own = single[(single["attack"] == "worst_case") & (single["fold"] == "heldout")]
        assert row["heldout_accuracy"] == pytest.approx(own["correct"].mean())
        assert row["optimism"] == pytest.approx(row["tune_accuracy"] - row["heldout_accuracy"])
        assert f"{row['optimism']:+.3f}" in said and row["trials"] == 4
        assert (folder.parent / "elicitation.search.sqlite3").is_file()
        read[model] = row
    over = read["base__rmu"]["heldout_accuracy"] - read["filtered"]["heldout_accuracy"]
    assert read["base__rmu"]["over_filtered"] == pytest.approx(over)
    overview = pd.read_csv(tmp_path / "elicitation" / "elicitation_summary.csv")
    worst = overview[overview["attack"] == "worst_case"].set_index("model")
    assert worst.loc["base__rmu", "over_filtered"] == pytest.approx(over)


def test_a_model_of_one_block_has_no_lens_to_search(tmp_path: Path) -> None:
    folder = tiny_models.save("gpt_neox", tmp_path / "model", num_hidden_layers=1)
    victim = elicit_study.victim(folder, tmp_path)
    skipped: list[str] = []
    assert not [*elicitation._tries(victim, registry.load("lens"), {}, skipped)]
    assert skipped == ["lens: the model has one block: there is no inner one to read"]
    assert not worst_case._spaces(victim, [registry.load("lens")], {})
