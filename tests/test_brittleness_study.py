"""studies/brittleness.toml as it is planned, and the registered document."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from model_diffs.attacks import lock
from model_diffs.attacks.material import Attack
from model_diffs.core.step import load_steps
from model_diffs.pipeline import worlds
from model_diffs.pipeline.environment import Settings
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import read_study
from model_diffs.pipeline.units import Unit, select, with_planned

ROOT = Path(__file__).parent.parent
STUDY = read_study(str(ROOT / "studies/brittleness.toml"))


def planned(world: int) -> list[Unit]:
    study = worlds.of_world(STUDY, world)
    planner = Planner(study, Settings(outroot=f"outputs/{study.results}"), load_steps())
    return with_planned([*planner.make(), *planner.unlearn(), *planner.steps()])


def scripts(units: Sequence[Unit]) -> list[str]:
    return [unit.script.name for unit in units]


@pytest.mark.parametrize("world", [1, 4])
def test_every_option_of_the_study_is_one_of_its_script(world: int) -> None:
    units = planned(world)
    assert {"attack_free_analysis.py", "write_predictors.py", "relearn.py"} <= {*scripts(units)}
    made = [unit.chosen for unit in units if unit.script.name == "unlearn.py"]
    until = [one for one in made if one.until]
    assert len(until) == 14 and {one.until for one in until} == {"hazard=0.3"}
    assert {one.seed for one in made} == {2000 + world}
    locked = world in STUDY.worlds.locked  # type: ignore[union-attr]
    assert (units[0].chosen.registration == "docs/brittleness.md") == locked
    paths = {str(one.folder) for unit in units for one in unit.planned}
    assert len(paths) == sum(len(unit.planned) for unit in units)
    assert all(f"world{world}" in path for path in paths)


def test_no_two_worlds_share_a_seed_or_a_folder() -> None:
    found = [worlds.of_world(STUDY, world) for world in range(1, 9)]
    assert len({one.make for one in found}) == len({one.results for one in found}) == 8
    assert len({one.seeds for one in found}) == len({one.made_in for one in found}) == 8


def test_attacks_come_last_and_predictors_between() -> None:
    units = planned(1)
    measured = scripts(select(units, STUDY.worlds.measure))  # type: ignore[union-attr]
    assert not {"relearn.py", "elicit.py", "write_predictors.py"} & {*measured}
    attacks = scripts(select(units, STUDY.worlds.attack))  # type: ignore[union-attr]
    assert attacks == ["relearn.py", "elicit.py"]


def test_steps_that_a_study_may_do_without_run_where_it_names_them() -> None:
    miniature = Planner(read_study(str(ROOT / "studies/miniature.toml")), Settings(), load_steps())
    named = scripts([*miniature.steps()])
    assert "attack_free_analysis.py" not in named and "write_predictors.py" not in named
    assert "diff.py" in named  # the miniature has a dictionary


def test_predictors_are_measures_that_steps_declare() -> None:
    declared = {one.key for script in load_steps() for one in script.step.measures} | {"rate_sum"}
    given = STUDY.prediction
    assert len(given.predictors) == 3
    assert {*given.predictors, *given.baseline} <= declared


def test_harmless_arms_train_for_their_own_steps() -> None:
    given = Attack(
        forget_text="f", retain_text="r", steps=300, harmless_steps=25, eval_steps="0,10,25,100"
    )
    assert given.measured_steps("facts") == {0, 10, 25, 100, 300}
    assert given.measured_steps("retain") == {0, 10, 25}
    assert given.steps_of("lora") == 300


def test_every_registered_file_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = lock.hashes(Path("docs/brittleness.md"))
    assert len(found) >= 10 and "studies/brittleness.toml" in found
    analysed = {f"model_diffs/brittleness/{n}.py" for n in ("analysis", "measures", "table")}
    assert analysed <= {*found}
