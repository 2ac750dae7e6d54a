"""Which small errors in the numerical modules would the fast tests not notice?

Mutants have one change each (mutation_operators.py says which). They are tried in a temporary copy
of the project: a process that has the libraries imported forks for each mutant and runs the tests
that reach the changed lines, fastest first, until one fails (killed). Taking far longer than
without the change is failing too. Only test files that name the module count.

    uv run benchmarks/mutation.py stats/intervals.py
    uv run benchmarks/mutation.py --scores scores.tsv > survivors.txt
    uv run benchmarks/mutation.py --again survivors.txt

Prints the survivors as they are found, the scores at the end. Survivors that no test can kill,
since they compute the same, are listed in mutation_equivalent.txt with the reason.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mutation_operators import mutants
from mutation_runner import PACKAGE, killed, without_change

ROOT = Path(__file__).parent.parent
MODULES = {
    "stats": "intervals seeds estimates cross_validation discriminant spectra",
    "diagnostics": "covariance projections param_stats row_space probes lipschitz "
    "activation_norms mlp_nullspace selectivity sensitivity subspaces separation jacobian",
    "evaluation": "logit_lens scoring",
    "activations": "sums tokens",
    "unlearning": "losses likelihood representation adversarial reference data optimizers edits "
    "measuring trainer",
    "attacks": "relearning recovered relearning_tables",
    "dictionaries": "pursuit itda sums diffing training sae",
    "importance": "measuring lenses sites",
    "report": "reductions",
}
THROUGH = {
    "activations/sums.py": ["test_activations.py", "test_covariance.py"],
    "activations/tokens.py": ["test_activations.py"],
    "diagnostics/projections.py": ["test_row_space.py"],
    "diagnostics/selectivity.py": ["test_row_space.py"],
    "importance/gradients.py": ["test_importance.py", "test_sae_in_the_loop.py"],
    **dict.fromkeys(
        ("unlearning/likelihood.py", "unlearning/representation.py", "unlearning/measuring.py"),
        (
            "test_unlearning_losses.py",
            "test_unlearning_trainer.py",
            "test_unlearning_wiring.py",
            "test_unlearning_loop.py",
            "test_unlearning_texts.py",
        ),
    ),
}
"""Test files of modules that tests reach through a script, or under the name of their room."""
EQUIVALENT = Path(__file__).parent / "mutation_equivalent.txt"


class Score(NamedTuple):
    """What became of the mutants of one module."""

    module: str
    mutants: int
    killed: int
    equivalent: int

    @property
    def survived(self) -> int:
        return self.mutants - self.killed - self.equivalent

    @property
    def share(self) -> float:
        """Per cent killed of those that could be."""
        return 100 * self.killed / max(self.mutants - self.equivalent, 1)

    def line(self) -> str:
        counts = f"{self.mutants:5d} {self.killed:6d} {self.survived:8d} {self.equivalent:10d}"
        return f"{self.module:34s} {counts} {self.share:7.1f} %"


def test_files(module: str, folder: Path) -> list[str]:
    """The test files that name a module such as `stats/spectra.py`."""
    room, name = Path(module).parent.name, Path(module).stem
    from_room = rf"from {PACKAGE}\.{room} import (\([^)]*|[^\n]*)\b{name}\b"
    named = re.compile(rf"\b{PACKAGE}\.{room}\.{name}\b|{from_room}")
    files = sorted((folder / "tests").glob("test_*.py"))
    through = THROUGH.get(module, ())
    return [
        f"tests/{file.name}"
        for file in files
        if file.name in through or named.search(file.read_text())
    ]


def equivalents() -> set[str]:
    """The changes that compute the same, as `Mutant.key` or `of_line`; each needs a reason."""
    text = re.sub(r"^#.*\n", "", EQUIVALENT.read_text(), flags=re.MULTILINE)
    found = set()
    for entry in filter(None, re.split(r"\n\s*\n", text.strip())):
        *key, reason = entry.splitlines()
        if not reason.startswith("= "):
            raise SystemExit(f"{EQUIVALENT.name}: this entry ends without '= reason':\n{entry}")
        found.add("\n".join(key))
    return found


def measure(
    folder: Path, module: str, files: Sequence[str], every: int, survivors: str | None
) -> Score:
    """Try one in `every` mutants of a module, or of its earlier survivors; print what survives."""
    path = Path(PACKAGE) / module
    source = (folder / path).read_text()
    known = equivalents()
    begin = time.monotonic()
    tests = without_change(folder, path, files)
    counts: Counter[str] = Counter()
    unknown = {entry for entry in known if entry.split()[0] == module}
    for number, mutant in enumerate(mutants(module, source)):
        if number % every:
            continue
        counts["mutants"] += 1
        if listed := known & {mutant.key, mutant.of_line}:
            counts["equivalent"] += 1
            unknown -= listed
            continue
        tried = survivors is None or f"{mutant.key}\n" in survivors
        if not tried or killed(folder, path, mutant, tests):
            counts["killed"] += 1
        else:
            print(f"{mutant.key}\n", flush=True)
    for entry in unknown if every == 1 else ():
        print(f"# listed as equivalent, but no mutant:\n# {entry!r}\n")
    score = Score(module, counts["mutants"], counts["killed"], counts["equivalent"])
    seconds = time.monotonic() - begin
    print(f"# {score.line()}  {seconds:.0f} s, {len(tests.all)} tests of {', '.join(files)}")
    return score


def in_new_process(module: str, arguments: argparse.Namespace) -> Score:
    """Measure in a process of its own: the libraries of one module are not another's."""
    words = [sys.executable, __file__, module, "--here", "--every", str(arguments.every)]
    if arguments.again is not None:
        words += ["--again", str(arguments.again)]
    if arguments.tests is not None:
        words += ["--tests", *arguments.tests]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    last = ""
    for last in run.stdout:
        print(last, end="", flush=True)
    if run.wait():
        raise SystemExit(run.returncode)
    numbers = [int(word) for word in last.split()[2:6]]
    return Score(module, numbers[0], numbers[1], numbers[3])


def report(scores: Sequence[Score]) -> None:
    """Print a line per module and the sum."""
    print(f"\n{'module':34s} mutants killed survived equivalent   score")
    totals = [sum(getattr(score, name) for score in scores) for name in Score._fields[1:]]
    for score in [*scores, Score("all", *totals)]:
        print(score.line())


def parse_arguments() -> argparse.Namespace:
    everything = [f"{room}/{name}.py" for room, names in MODULES.items() for name in names.split()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=everything, help="such as stats/intervals.py")
    parser.add_argument(
        "--again", type=Path, help="an earlier output: only its survivors are tried, others count"
    )
    parser.add_argument("--every", type=int, default=1, help="try one mutant in so many")
    parser.add_argument("--tests", nargs="+", help="test files in place of those that name it")
    parser.add_argument("--scores", type=Path, help="add a line per module to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_here(arguments: argparse.Namespace) -> None:
    """One module in a temporary copy of the project."""
    (module,), again = arguments.modules, arguments.again
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import copy_project

    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(Path(folder).resolve() / "project")
        for name in ("conftest", "pytest"):
            sys.modules.pop(name, None)
        sys.path.remove(str(ROOT / "tests"))
        files = arguments.tests or test_files(module, copy)
        measure(copy, module, files, arguments.every, again.read_text() if again else None)


def main() -> None:
    arguments = parse_arguments()
    if arguments.here:
        measure_here(arguments)
        return
    scores = []
    for module in arguments.modules:
        scores.append(in_new_process(module, arguments))
        if arguments.scores:
            with arguments.scores.open("a") as file:
                file.write(scores[-1].line() + "\n")
    report(scores)


if __name__ == "__main__":
    main()
