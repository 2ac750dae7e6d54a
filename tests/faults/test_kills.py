"""A step is killed and run again at once: the same bytes, nothing left. At size: kills.py."""

import kills
import pytest

pytestmark = [pytest.mark.study, pytest.mark.xdist_group("kills")]
STEPS = ("unlearn", "1", "4", "14")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> kills.World:
    return kills.make_world(tmp_path_factory.mktemp("kills") / "project", ",".join(STEPS))


@pytest.mark.parametrize("kill", kills.kills(9, 1, STEPS), ids=lambda kill: kill.environment)
def test_a_rerun_at_once_gives_the_same_bytes(world: kills.World, kill: kills.Kill) -> None:
    outcome = kills.strike(world, kill, replace=kill.hook.endswith("rename"))
    assert not outcome.problem


def test_kills_cover_every_signal_and_target() -> None:
    chosen = kills.kills(9, 1, STEPS)
    assert len({(one.signal, one.whom) for one in chosen}) == 9
    assert {one.step for one in chosen} == set(STEPS)
    assert len({(one.step, one.signal, one.whom) for one in kills.kills(153, 0)}) == 153
