"""Controls in a study: made after the model that they are like, with its seed, apart by role."""

from pathlib import Path

import pytest

from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.core.methods import UNLEARNING
from model_diffs.core.step import load_steps
from model_diffs.pipeline.environment import Settings, with_all_methods, with_environment
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import Study, read_study
from model_diffs.pipeline.units import Unit, with_planned, with_states

STUDY = """
[models]
base = "./base"
[texts]
forget = "f.txt"
retain = "r.txt"
[unlearn.noise]
like = "npo"
role = "control"
[unlearn.npo]
lr = 1e-3
[unlearn.benign]
method = "finetune"
text = "benign.txt"
[unlearn.ga]
compare = false
"""


def study_of(folder: Path, text: str = STUDY) -> Study:
    (folder / "s.toml").write_text(text)
    return read_study(str(folder / "s.toml"))


def units_of(study: Study, every: bool = False) -> list[Unit]:
    planner = Planner(study, Settings(outroot=str(study.path.parent / "out")), load_steps())
    return with_states(with_planned(planner.unlearn(every)), False)


def folders(units: list[Unit]) -> list[str]:
    return [str(unit.planned[0].folder).removeprefix("unlearned_models/base__") for unit in units]


def test_a_model_is_made_after_the_one_that_it_is_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    units = units_of(study_of(tmp_path))
    assert folders(units) == ["npo", "noise", "benign"]
    npo, noise, benign = units
    assert noise.chosen.like == npo.chosen.outdir
    assert (benign.chosen.method, benign.chosen.text) == ("finetune", "benign.txt")
    with results.open_run(noise.targets[0].planned):
        pass
    status = {unit.name: unit.targets[0].status for unit in units_of(study_of(tmp_path))}
    assert status["unlearn_unlearn.noise"] == "follows"
    with results.open_run(npo.targets[0].planned):
        pass
    status = {unit.name: unit.targets[0].status for unit in units_of(study_of(tmp_path))}
    assert status["unlearn_unlearn.noise"] == "complete"


def test_each_seed_is_like_the_model_of_its_own_seed(tmp_path: Path) -> None:
    units = units_of(study_of(tmp_path, f"seeds = [3, 5]\n{STUDY}"))
    like = {u.chosen.seed: u.chosen.like for u in units if u.chosen.method == "noise"}
    assert like == {seed: f"./unlearned_models/base__npo__seed{seed}" for seed in (3, 5)}


def test_what_a_chosen_model_is_like_is_made_but_not_compared(tmp_path: Path) -> None:
    for study in (
        with_environment(study_of(tmp_path), {"UNLEARN": "noise"}),
        study_of(tmp_path, STUDY.replace("lr = 1e-3", "compare = false")),
    ):
        assert folders(units_of(study))[:2] == ["npo", "noise"]
        assert not study.made()["./unlearned_models/base__npo"][0].compare


def test_roles_of_controls_are_those_of_their_methods(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    roles = {one.name: one.role for one in study.unlearn}
    assert roles == {"noise": "control", "npo": "unlearned", "benign": "control", "ga": "unlearned"}
    given = with_environment(study, {"UNLEARN": "finetune npo"})
    assert [one.role for one in given.unlearn] == ["control", "unlearned"]
    assert [one.name for one in with_all_methods(study, {}).unlearn] == UNLEARNING


@pytest.mark.parametrize("like", ["noise", "other"])
def test_models_that_are_like_one_another_are_refused(like: str, tmp_path: Path) -> None:
    text = STUDY.replace('like = "npo"', f'like = "{like}"')
    text += '[unlearn.other]\nmethod = "noise"\nlike = "noise"\n'
    with pytest.raises(BadInput, match="leads back to itself"):
        units_of(study_of(tmp_path, text))


def test_an_entry_that_lacks_what_its_method_needs_is_refused_in_the_plan(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--method noise needs --like"):
        units_of(study_of(tmp_path, STUDY.replace('like = "npo"', "")))
