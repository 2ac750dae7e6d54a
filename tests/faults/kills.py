"""Kills a study at hooks spread over its steps, runs it again at once, and compares every byte.

    python tests/faults/kills.py --count 100

A kill is a step, a function that it calls, the number of the call, a signal, and whom it hits: the
step's process, the pipeline, or the whole group. After each the same step is run again: its tables,
arrays and weights must be those of an undisturbed run, with no process and nothing unfinished left.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import tiny_models  # noqa: E402
import tiny_study  # noqa: E402
from conftest import copy_project  # noqa: E402

COMPARED = {".csv", ".npz", ".npy", ".safetensors", ".json", ".html", ".yaml"}
TIMED = {"run.json", "unlearning.json", "report.html"}
"""These hold times."""
PRODUCED = ("outputs", "unlearned_models", "artifacts")

STUDY = """
[models]
base = "./models/base"
filtered = "./models/filtered"
[texts]
forget = "texts/forget.txt"
retain = "texts/retain.txt"
questions = "texts/questions.jsonl"
max-samples = 12
[dictionary]
folder = "artifacts/runs/base"
layer = 1
k = 1
fvu-threshold = 0.05
[unlearn.npo]
batch-size = 4
epochs = 2
checkpoint-every = 2
[steps.7]
k = 2
[steps.12]
num-perturbations = 2
max-iters = 5
[steps.13]
folds = 2
max-iter = 20
[steps.14]
lr = [1e-3]
steps = 4
eval-steps = "0,2,4"
batch-size = 4
max-lines = 6
"""

# What a step's process calls, by step; each is hit at its first to `most`-th call.
RUN = "model_diffs.core.results:Run"
EVERYWHERE = [(f"{RUN}._commit", 2), ("model_diffs.core.folders:replace", 2), (f"{RUN}.reads", 2)]
RENAMES = [("pathlib:Path.rename", 3)]
TABLES = [(f"{RUN}.table", 2)]
FIGURES = [(f"{RUN}.figure", 2)]
TRAINS = [
    ("model_diffs.unlearning.trainer:Trainer._step", 4),
    ("model_diffs.unlearning.trainer:Trainer.evaluate", 2),
    ("model_diffs.unlearning.trainer:save_state", 2),
]
ATTACKS = [("model_diffs.attacks.relearning:_Victim.batch", 4),
           ("model_diffs.attacks.relearning:_Victim.measure", 4)]  # fmt: skip
READS = [("model_diffs.activations.collecting:_save", 2)]
STEPS: dict[str, list[tuple[str, int]]] = {
    "unlearn": TRAINS * 2 + EVERYWHERE + RENAMES,
    "1": TABLES + EVERYWHERE + RENAMES,
    "2": FIGURES + EVERYWHERE,
    "4": TABLES + READS + EVERYWHERE,
    "5": FIGURES + EVERYWHERE,
    "6": TABLES + FIGURES + EVERYWHERE,
    "7": TABLES + EVERYWHERE,
    "8": TABLES + EVERYWHERE,
    "9": TABLES + EVERYWHERE,
    "10": TABLES + EVERYWHERE,
    "11": TABLES + EVERYWHERE,
    "12": TABLES + EVERYWHERE,
    "13": TABLES + EVERYWHERE,
    "14": ATTACKS * 2 + TABLES + EVERYWHERE + RENAMES,
    "15": TABLES + EVERYWHERE + RENAMES,
    "16": EVERYWHERE,
    "17": TABLES + EVERYWHERE,
}
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
TARGETS = ("child", "shell", "group")


class Kill(NamedTuple):
    """Where a process is hit, by what."""

    step: str
    hook: str
    call: int
    when: str
    signal: str
    whom: str

    @property
    def environment(self) -> str:
        return ":".join([self.hook, str(self.call), self.when, self.signal, self.whom])


class Outcome(NamedTuple):
    """What came of a kill."""

    struck: bool
    problem: str
    """Empty: everything is as it would have been without."""


def kills(count: int, seed: int, of: Sequence[str] = tuple(STEPS)) -> list[Kill]:
    """Kills spread evenly over steps, signals and targets, and at random over hooks and calls."""
    draw = random.Random(seed)
    steps, ends = list(of), [(s, t) for s in SIGNALS for t in TARGETS]
    draw.shuffle(steps)
    draw.shuffle(ends)
    found = []
    for number in range(count):
        # Numbers of steps and of ends have no common divisor, so all pairs occur in turn.
        step, (name, whom) = steps[number % len(steps)], ends[number % len(ends)]
        hook, most = draw.choice(STEPS[step])
        when = "after" if hook.endswith("rename") else draw.choice(["before", "after"])
        found.append(Kill(step, hook, draw.randint(1, most), when, name, whom))
    return found


@dataclass(frozen=True)
class World:
    """A copy of the project with a tiny study, run once without disturbance."""

    root: Path
    expected: dict[str, bytes]

    def pipeline(self, *words: str, **more: str) -> "subprocess.Popen[str]":
        return start(self.root, *words, **more)


def start(root: Path, *words: str, **more: str) -> "subprocess.Popen[str]":
    """Start the study's pipeline in a process group of its own."""
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "PATH", "TMPDIR", "LANG")}
    given = {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1", "OMP_NUM_THREADS": "1"}
    given["XDG_CACHE_HOME"] = str(root / "cache")
    return subprocess.Popen(
        ["./pipeline.sh", "study.toml", *words],
        cwd=root,
        env={**kept, **given, "KILL_WORLD": str(root), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def contents(root: Path, where: tuple[str, ...] = PRODUCED) -> dict[str, bytes]:
    """Everything under the produced folders that holds no times."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for name in where
        for path in sorted((root / name).rglob("*"))
        if path.suffix in COMPARED and path.name not in TIMED and path.is_file()
        and not path.name.endswith(".failed.json") and "activation_cache" not in path.parts
    }  # fmt: skip


def make_world(root: Path, steps: str = "") -> World:
    """The tiny study under `root`, complete, or these steps of it."""
    copy_project(root)
    for name, seed in (("base", 0), ("filtered", 1)):
        tiny_models.save("llama", root / "models" / name, seed=seed)
    (root / "texts").mkdir()
    for split in ("forget", "retain"):
        lines = tiny_study.texts(split, 16)
        (root / "texts" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    asked = tiny_study.questions(root / "texts/questions.jsonl", 24)
    text = asked.read_text()
    for fold in ("heldout", "tune", "attack"):  # relearning asks for these
        text = text.replace('"fold": null', f'"fold": "{fold}"', 5)
    asked.write_text(text)
    (root / "study.toml").write_text(STUDY)
    process = start(root, *(["--steps", steps] if steps else []))
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)
    return World(root, contents(root))


def folders_of(world: World, step: str) -> list[Path]:
    """The result folders of a step."""
    from model_diffs.core.step import load_steps

    if step == "unlearn":
        return sorted((world.root / "unlearned_models").iterdir())
    names = {one.step.folder for one in load_steps() if str(one.step.number) == step}
    found = [p for name in names for p in (world.root / "outputs").rglob(name) if p.is_dir()]
    return found + ([world.root / "artifacts/runs/base"] if step == "15" else [])


def processes(world: World) -> list[int]:
    """Living processes that a pipeline of this world started, or is."""
    found = []
    for one in psutil.process_iter():
        try:
            ours = one.environ().get("KILL_WORLD") == str(world.root)
            if ours and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def strike(world: World, kill: Kill, replace: bool) -> Outcome:
    """Kill a step, run it again at once, and look at what is there.

    `replace`: earlier results are there and are made again (--force); else they are gone first.
    """
    for folder in () if replace else folders_of(world, kill.step):
        shutil.rmtree(folder)
    note = world.root / "struck"
    note.unlink(missing_ok=True)
    words = ["--steps", kill.step]
    hooked = {"PYTHONPATH": str(HERE / "hook"), "KILL_AT": kill.environment, "KILL_NOTE": str(note)}
    first = world.pipeline(*words, *(["--force"] if replace else []), **hooked)
    first.wait()
    again = world.pipeline(*words)
    output, _ = again.communicate(timeout=300)
    problems = []
    if again.returncode:
        problems.append(f"the rerun ended with {again.returncode}: {output[-600:]}")
    if left := processes(world):
        problems.append(f"processes left: {left}")
    if partial := [str(p) for p in world.root.rglob("*.partial")]:
        problems.append(f"left unfinished: {partial}")
    time.sleep(0.2)  # whatever would still write
    found = contents(world.root)
    differing = [n for n in {*found, *world.expected} if found.get(n) != world.expected.get(n)]
    if differing:
        problems.append(f"differ: {sorted(differing)[:8]}")
    first.communicate()
    return Outcome(note.exists(), "; ".join(problems))


def run(world: World, chosen: list[Kill], seed: int) -> list[tuple[Kill, Outcome]]:
    """Strike with every kill in turn."""
    draw = random.Random(seed)
    found = []
    for number, kill in enumerate(chosen, 1):
        started = time.perf_counter()
        # Renames are about an earlier result that makes way.
        outcome = strike(world, kill, kill.hook.endswith("rename") or draw.random() < 0.25)
        found.append((kill, outcome))
        said = "as undisturbed" if not outcome.problem else outcome.problem
        seconds = time.perf_counter() - started
        missed = "" if outcome.struck else " (not reached)"
        print(
            f"{number:3d} {' '.join(map(str, kill))}{missed}: {said} ({seconds:.1f} s)", flush=True
        )
    return found


def main() -> None:
    """Print how many of the kills left everything as it would have been."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="make the study here and keep it")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="kills_") as folder:
        started = time.perf_counter()
        world = make_world((given.folder or Path(folder)).absolute() / "project")
        print(f"the study: {time.perf_counter() - started:.0f} s, {len(world.expected)} files")
        found = run(world, kills(given.count, given.seed), given.seed)
        struck = [outcome for _, outcome in found if outcome.struck]
        good = sum(not outcome.problem for outcome in struck)
        by = Counter((kill.signal, kill.whom) for kill, outcome in found if outcome.struck)
        print(", ".join(f"{s} {w} {n}" for (s, w), n in sorted(by.items())))
        print(f"not reached: {len(found) - len(struck)}")
        print(f"{good} of {len(struck)} kills left the same bytes after a rerun at once")
        print(f"{time.perf_counter() - started:.0f} s, seed {given.seed}")
        sys.exit(any(outcome.problem for _, outcome in found))


if __name__ == "__main__":
    main()
