"""What waits for what, how a step is divided, and what several units at a time see."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from test_executor import unit as scripted
from test_plan import named, units_of

from model_diffs.core import results
from model_diffs.pipeline import executor, graph
from model_diffs.pipeline.environment import visible_gpus
from model_diffs.pipeline.studies import Dictionary, Models, Texts, Unlearn
from model_diffs.pipeline.units import Unit

NPO, NOISE = Unlearn("npo", "npo"), Unlearn("noise", "noise", "control", arguments={"like": "npo"})


def whole(tmp_path: Path) -> list[Unit]:
    """A study that makes everything it reads."""
    return units_of(
        tmp_path,
        make=("create_miniature.py",),
        models=Models("./models/miniature-base", filtered=("./models/miniature-filtered",)),
        texts=Texts("data/miniature/forget.txt", "data/miniature/retain.txt",
                    "data/miniature/questions.jsonl", "data/miniature/attack.txt"),
        dictionary=Dictionary("artifacts/runs/base", {"layer": 1}),
        unlearn=(NPO, NOISE),
    )  # fmt: skip


def waits(units: Sequence[Unit], of: Unit) -> dict[str, str]:
    """Names of the units that one waits for → `needs` or `after`."""
    edges = graph.edges(units)[[one is of for one in units].index(True)]
    return {units[i].name: "needs" for i in edges.needs} | {
        units[i].name: "after" for i in edges.after
    }


def test_a_unit_waits_for_what_makes_its_models_texts_and_tables(tmp_path: Path) -> None:
    units = whole(tmp_path)
    assert waits(units, units[0]) == {}
    npo, noise = (one for one in units if one.script.name == "unlearn.py")
    assert waits(units, npo) == {"create_miniature": "needs"}
    assert waits(units, noise) == {"create_miniature": "needs", npo.name: "needs"}
    made = {"create_miniature", npo.name, noise.name}
    stats = named(units, "collect_param_stats.py")
    assert waits(units, stats) == dict.fromkeys(made, "needs")
    plots = waits(units, named(units, "plot_param_stats.py"))
    assert plots[stats.name] == "needs" and "collect_activation_norms" not in plots
    assert waits(units, named(units, "diff.py"))["train_itda_dictionary"] == "needs"


def test_unlearning_waits_for_the_texts_and_the_base_alone(tmp_path: Path) -> None:
    one = "create_miniature.py --models-only --models"
    units = units_of(
        tmp_path,
        make=("create_miniature.py --texts-only", f"{one} base", f"{one} filtered"),
        models=Models("./models/miniature-base", filtered=("./models/miniature-filtered",)),
        texts=Texts("data/miniature/forget.txt", "data/miniature/retain.txt"),
        unlearn=(NPO,),
    )
    texts, base, filtered, npo, *_ = units
    assert [len(one.todo) for one in units[:3]] == [1, 1, 1]
    assert len({one.name for one in units}) == len(units)
    assert waits(units, base) == {texts.name: "needs"} == waits(units, filtered)
    assert waits(units, npo) == {texts.name: "needs", base.name: "needs"}
    assert filtered.name in waits(units, named(units, "collect_param_stats.py"))
    # Without its texts no model is trained, and nothing unlearned from it.
    made = {os.path.abspath(target.planned.folder) for target in texts.todo}
    assert [bool(graph.lost(one, made)) for one in (base, filtered, npo)] == [True] * 3


def test_a_model_is_passed_over_texts_once_and_then_read(tmp_path: Path) -> None:
    units = whole(tmp_path)
    first = named(units, "collect_activation_norms.py").name
    for script in ("activation_separation_analysis.py", "linear_probe_analysis.py"):
        assert waits(units, named(units, script))[first] == "after"
        assert "activation_covariance_analysis" not in waits(units, named(units, script))
    assert first not in waits(units, named(units, "null_space_analysis.py"))


def test_the_report_comes_after_everything_and_needs_nothing(tmp_path: Path) -> None:
    units = whole(tmp_path)
    found = waits(units, units[-1])
    assert len(found) == len(units) - 1
    assert set(found.values()) == {"after"}


def test_parts_hold_every_model_once_and_wait_for_the_reference(tmp_path: Path) -> None:
    units = units_of(
        tmp_path, models=Models("./b", ("./f",), (), tuple(f"./m{i}" for i in "123456"))
    )
    parts = graph.divided(units, 3)
    stats = [one for one in parts if one.script.name == "collect_param_stats.py"]
    labels = [one.planned.model_b for part in stats for one in part.todo]
    assert [len(one.todo) for one in stats] == [3, 3, 1]
    assert labels == ["./f", *(f"./m{i}" for i in "123456")]
    assert len({one.name for one in parts}) == len(parts)
    attacks = [one for one in parts if one.script.name == "relearn.py"]
    assert [one.planned.model_a for one in attacks[0].todo] == ["./f"]
    for one in attacks[1:-1]:
        assert waits(parts, one) == {attacks[0].name: "needs"}
    assert len(waits(parts, attacks[-1])) == len(attacks) - 1
    assert len(attacks[-1].todo) == len(attacks)  # all models, and the table over them


def test_units_are_divided_only_where_models_are_many(tmp_path: Path) -> None:
    units = units_of(tmp_path, models=Models("./b", unlearned=("./m1", "./m2")))
    assert graph.for_jobs(units, 1) == units
    stats = [u for u in graph.for_jobs(units, 2) if u.script.name == "collect_param_stats.py"]
    assert len(stats) == 1


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_no_order_starts_a_unit_before_what_it_reads(tmp_path: Path, jobs: int) -> None:
    units = graph.divided(whole(tmp_path), 1)
    edges, draw = graph.edges(units), random.Random(jobs)
    done: set[str] = set()
    waiting, running = [*range(len(units))], set[int]()
    made_later = {os.path.abspath(t.planned.folder) for u in units for t in u.todo}
    while waiting or running:
        ready = [i for i in waiting if not (edges[i].needs | edges[i].after) & {*waiting, *running}]
        if ready and len(running) < jobs:
            chosen = draw.choice(ready)
            waiting.remove(chosen)
            running.add(chosen)
            own = {os.path.abspath(t.planned.folder) for t in units[chosen].todo}
            for target in units[chosen].todo:
                if not graph.gathers(target, units[chosen]):
                    read = graph.inputs(target, units[chosen]) & made_later
                    assert read - own <= done
        else:
            ended = draw.choice(sorted(running))
            running.remove(ended)
            done |= {os.path.abspath(t.planned.folder) for t in units[ended].todo}


def test_what_reads_a_model_that_was_not_made_is_lost_and_nothing_else(tmp_path: Path) -> None:
    units = whole(tmp_path)
    npo = next(one for one in units if one.script.name == "unlearn.py")
    unmade = graph.unmade([npo])
    for unit in units:
        lost = graph.lost(unit, unmade)
        assert all("npo" in one.planned.label for one in lost) or unit.name.endswith("noise")
    assert len(graph.lost(named(units, "collect_param_stats.py"), unmade)) == 1


# ── several at a time ─────────────────────────────────────────────────────────────────────────────


@dataclass
class WithModels:
    """Options of a script that compares."""

    model_b: tuple[str, ...] = ()


def run(tmp_path: Path, codes: Sequence[str], jobs: int, **shared: object) -> list[int]:
    units = [scripted(tmp_path, number, code) for number, code in enumerate(codes, 1)]
    for one in units:  # nothing that another reads
        one.script.module.STEP = replace(one.script.step, scope="comparison")
        one.script.module.Options = WithModels
        one.words, one.chosen = ["--model-b", "x"], WithModels()
    held = os.open(os.devnull, 0)
    given = executor.Shared(str(tmp_path), ["python"], held, keep_going=True, jobs=jobs, **shared)  # type: ignore[arg-type]
    statuses: list[tuple[Unit, int]] = []
    executor.run_units(units, given, statuses)
    os.close(held)
    by_number = {unit.number: status for unit, status in statuses}
    return [by_number[number] for number in range(1, len(codes) + 1)]


MEETS = """
import sys, time
from pathlib import Path
here = Path({place!r})
(here / "{own}").touch()
until = time.monotonic() + 20
while not (here / "{other}").exists():
    if time.monotonic() > until: sys.exit(1)
    time.sleep(0.02)
"""


def test_units_that_do_not_wait_for_each_other_run_at_once(tmp_path: Path) -> None:
    codes = [MEETS.format(place=str(tmp_path), own=a, other=b) for a, b in ("xy", "yx")]
    assert run(tmp_path, codes, 2) == [0, 0]


def test_each_of_two_units_sees_a_gpu_of_its_own(tmp_path: Path) -> None:
    notes = [
        MEETS.format(place=str(tmp_path), own=a, other=b)
        + f"import os; (here / 'gpu{a}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
        for a, b in ("xy", "yx")
    ]
    assert run(tmp_path, notes, 2, gpus=("4", "7")) == [0, 0]
    assert {(tmp_path / f"gpu{one}").read_text() for one in "xy"} == {"4", "7"}


def test_a_failure_leaves_the_others_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(results.INVOCATION, "now")
    assert run(tmp_path, ["raise SystemExit(3)", "pass", "pass"], 2) == [3, 0, 0]


@pytest.mark.parametrize(
    ("value", "found"), [("0,1", ("0", "1")), ("", ()), ("GPU-a, GPU-b", ("GPU-a", "GPU-b"))]
)
def test_the_gpus_that_may_be_seen(value: str, found: tuple[str, ...]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == found
