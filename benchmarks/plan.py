"""How long does it take to plan a large study, and to see that it is complete?

Fifty models with some forty units each, dry: the plan with all dependencies, then the states of
2,000 complete results.

    uv run benchmarks/plan.py
"""

import tempfile
import time
from pathlib import Path

from model_diffs.core import results
from model_diffs.core.step import load_steps
from model_diffs.pipeline import graph, units
from model_diffs.pipeline.environment import Settings
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import Models, Study, Texts, Unlearn
from model_diffs.pipeline.units import Unit

MODELS, WANTED = 50, 2_000
WANTED_PLAN, WANTED_STATES = 5.0, 3.0


def plan(folder: Path) -> list[Unit]:
    """The units of the studies of a cluster: models of several seeds, each with all steps."""
    texts = Texts("forget.txt", "retain.txt", "questions.jsonl", "attack.txt")
    found: list[Unit] = []
    scripts, number = load_steps(), 0
    while len(found) < WANTED:
        made = tuple(Unlearn(f"npo{number}_{i}", "npo") for i in range(MODELS))
        study = Study("s", folder / "s.toml", models=Models("./base"), texts=texts, unlearn=made)
        planner = Planner(study, Settings(outroot=str(folder / f"outputs{number}")), scripts)
        every = units.with_planned([*planner.unlearn(), *planner.steps()])
        found += graph.divided(units.with_states(every, False), 1)
        number += 1
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        found = plan(folder)
        edges = graph.edges(found)
        seconds = time.perf_counter() - begin
        count = sum(len(one.needs) + len(one.after) for one in edges)
        print(f"{len(found)} units, {count} dependencies: {seconds:.2f} s (wanted {WANTED_PLAN:g})")
        targets = [target for unit in found for target in unit.todo][:WANTED]
        for target in targets:
            with results.open_run(target.planned) as run:
                (run.path / "table.csv").write_text("a\n1\n")
        begin = time.perf_counter()
        states = [results.state(target.planned).status for target in targets]
        seconds = time.perf_counter() - begin
        complete = states.count("complete")
        print(f"states of {complete} complete results: {seconds:.2f} s (wanted {WANTED_STATES:g})")


if __name__ == "__main__":
    main()
