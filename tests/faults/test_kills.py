"""A step is killed and run again at once: the same bytes, nothing left. At size: kills.py."""

import signal

import kills
import pytest

pytestmark = [pytest.mark.study, pytest.mark.xdist_group("kills")]
STEPS = ("unlearn", "1", "4", "14")


# Three of the nine: each takes a step twice.
@pytest.mark.parametrize("kill", kills.kills(9, 1, STEPS)[::3], ids=lambda one: one.environment)
def test_a_rerun_at_once_gives_the_same_bytes(world: kills.World, kill: kills.Kill) -> None:
    outcome = kills.strike(world, kill, replace=kill.hook.endswith("rename"))
    assert not outcome.problem


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_pipeline_that_is_ended_says_what_was_done(
    world: kills.World, name: str, status: int
) -> None:
    process = world.pipeline("--steps", "1,4", "--force")
    assert process.stdout is not None
    said = next(line for line in process.stdout if line.startswith("step 4 "))
    process.send_signal(getattr(signal, name))
    said += process.stdout.read()
    assert process.wait() == status and not kills.processes(world)
    if name == "SIGINT":
        table = [line.split() for line in said[said.index("interrupted") :].splitlines()]
        steps = [(line[0], line[2]) for line in table if "base__to__" in str(line)]
        assert [one for one in steps if one[0] == "1"] == [("1", "done")] * 2
    again = world.pipeline("--steps", "1,4")
    assert not again.communicate()[1] and again.returncode == 0


def test_several_units_at_a_time_give_the_same_bytes(world: kills.World) -> None:
    process = world.pipeline("--jobs", "3", "--steps", "1,4,14", OUTROOT="other")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    one = kills.contents(world.root, ("outputs",))
    several = kills.contents(world.root, ("other",))
    found = {name.replace("other/", "outputs/", 1): data for name, data in several.items()}
    assert found and found == {name: one[name] for name in found}
    assert {name for name in one if "/report/" not in name} == found.keys()


def test_kills_cover_every_signal_and_target() -> None:
    chosen = kills.kills(9, 1, STEPS)
    assert len({(one.signal, one.whom) for one in chosen}) == 9
    assert {one.step for one in chosen} == set(STEPS)
    assert len({(one.step, one.signal, one.whom) for one in kills.kills(153, 0)}) == 153
