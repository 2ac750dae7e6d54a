"""What do steps 1 to 13 cost, in multiples of bare passes of both models over the same texts?

Makes a pair of models of Pythia-160M's shapes with random weights and 64 + 64 texts of random
words, as long as lines of WikiText-2 and 18,746 tokens in all, in a scratch folder; times one bare
pass of both trunks, the floor; and runs every step as a process of its own, from nothing cached,
its start included. CPU seconds decide, since a shared machine's clock is noisy; for wall times take
an idle one.

    uv run benchmarks/all_steps.py
    uv run benchmarks/all_steps.py --texts 16 --width 256 --blocks 4 --vocabulary 8000
    uv run benchmarks/all_steps.py --steps 7 10 11 --against 7c06ba2
    uv run benchmarks/all_steps.py --steps 12 -- --jacobian-samples 10

With --against the steps of another commit run on the same models and texts in turn with ours.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import random_pair

from model_diffs.core import step as steps

ROOT = Path(__file__).parents[1]
TEXTS = 64
GOALS: dict[str, tuple[tuple[int, ...], float]] = {
    "4, 8, 9, 13": ((4, 8, 9, 13), 1.25),
    "1": ((1,), 0.15),
    "7, 10": ((7, 10), 0.25),
    "11": ((11,), 0.4),
    "12": ((12,), 6.0),
    "2, 5, 6": ((2, 5, 6), 0.0),
    "1 to 13": (tuple(range(1, 14)), 9.0),
}
"""Steps, and the multiple of the floor that is wanted; 0: none by itself."""


class Cost(NamedTuple):
    """Of one process."""

    cpu: float
    wall: float
    gigabytes: float
    """Peak of its resident memory, mapped files included."""


def scripts(code: Path, wanted: set[int]) -> list[tuple[int, Path]]:
    """Numbers and files of the steps. Step 3 makes data sets: it reads neither model."""
    found = []
    for path in sorted(code.glob("*.py")):
        if path.name in ("create_datasets.py",) or "STEP = Step(" not in path.read_text():
            continue
        number = steps.load_script(path).STEP.number
        if number in wanted:
            found.append((number, path))
    return sorted(found)


def words(path: Path, pair: list[str], files: dict[str, str], outroot: Path) -> list[str]:
    """The command line of a step: those of these options that it has."""
    known = steps.load_script(path).Options.__dataclass_fields__
    given = {
        "model_a": pair[:1], "model_b": pair[1:], "model": pair, "outroot": [str(outroot)],
        "device": ["cpu"], "max_samples": ["0"], **{key: [one] for key, one in files.items()},
    }  # fmt: skip
    named = {key: values for key, values in given.items() if key in known}
    return [word for key, values in named.items() for word in (f"--{key}", *values)]


def run(command: list[str], code: Path) -> Cost:
    """Run a script of `code` and wait for it."""
    environment = {**os.environ, "PYTHONPATH": str(code)}
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=code, env=environment, stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        output.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{output.read().decode()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * unit / 1e9)


@contextmanager
def checkout(commit: str | None) -> Iterator[list[tuple[str, Path]]]:
    """Name and folder of each code to run: ours, and that of another commit."""
    if commit is None:
        yield [("", ROOT)]
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "code")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(place), commit], check=True)
        try:
            yield [("", ROOT), (commit, place)]
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def report(costs: dict[tuple[str, int], Cost], floor: random_pair.Floor, name: str) -> None:
    """The table of one code."""
    ours = {number: cost for (code, number), cost in costs.items() if code == name}
    print(f"\n{name or 'this code'}")
    print(f"{'steps':12} {'CPU s':>8} {'wall s':>8} {'GB':>6} {'ratio':>7} {'goal':>6}")
    rows = {str(number): ((number,), 0.0) for number in ours} | GOALS
    for label, (numbers, goal) in rows.items():
        found = [ours[number] for number in numbers if number in ours]
        if not found or (label == "1 to 13" and len(ours) < 12):
            continue
        cpu, wall = sum(one.cpu for one in found), sum(one.wall for one in found)
        ratio, peak = cpu / floor.cpu, max(one.gigabytes for one in found)
        said = f"{goal:6.2f} {'met' if ratio <= goal else 'MISSED'}" if goal else ""
        print(f"{label:12} {cpu:8.1f} {wall:8.1f} {peak:6.2f} {ratio:7.2f} {said}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=TEXTS, help="per split")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--steps", type=int, nargs="+", default=range(1, 14))
    parser.add_argument("--against", help="a commit to compare with")
    parser.add_argument("rest", nargs="*", help="further words for every step, after --")
    options = parser.parse_args()
    shape = random_pair.shrunk(options.width, options.blocks, options.vocabulary)
    costs: dict[tuple[str, int], Cost] = {}
    with tempfile.TemporaryDirectory() as folder, checkout(options.against) as codes:
        pair = random_pair.make_models(Path(folder), shape)
        files = random_pair.make_texts(
            Path(folder), options.texts, min(random_pair.WORDS, options.vocabulary)
        )
        floor = random_pair.bare_passes(pair, files)
        print(f"{options.texts} + {options.texts} texts, {floor.tokens} tokens, ", end="")
        print(
            f"{os.cpu_count()} cores; floor {floor.cpu:.1f} CPU s, {floor.wall:.1f} s", flush=True
        )
        order = [(number, path.name) for number, path in scripts(ROOT, set(options.steps))]
        for number, script in order:
            for name, code in codes:
                said = words(code / script, pair, files, Path(folder, f"outputs{name}"))
                cost = run([str(code / script), *said, *options.rest], code)
                before = costs.get((name, number), Cost(0, 0, 0))  # step 5 has two scripts
                costs[name, number] = Cost(
                    before.cpu + cost.cpu, before.wall + cost.wall, max(before[2], cost[2])
                )
                print(f"{number:3} {script} {name}: {cost.cpu:.1f} CPU s", flush=True)
    for name, _ in codes:
        report(costs, floor, name)


if __name__ == "__main__":
    main()
