"""What does step 12 cost in multiples of bare passes of both models over the same texts?

Makes a pair of models of Pythia-160M's shapes with random weights, and texts as long as lines of
WikiText-2, in a scratch folder; runs step 12 on them as a process, its start and loading included;
and times, in the same run, one pass of both trunks over both splits in batches of 16: the floor.
CPU seconds, since a shared machine's clock is noisy. As many of the texts have a Jacobian as by the
step's default for 64 texts, 12 in 64.

    uv run benchmarks/step12.py
    uv run benchmarks/step12.py --texts 16 -- --num-perturbations 10 --tol 1e-3
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import random_pair

ROOT = Path(__file__).parents[1]
TEXTS = 64


def step(arguments: list[str]) -> float:
    """CPU seconds of step 12 as a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "local_lipschitzness_analysis.py"), *arguments]
    subprocess.run(command, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=TEXTS, help="per split")
    parser.add_argument("rest", nargs="*", help="further options of the step, after --")
    options = parser.parse_args()
    derivatives = max(2, options.texts * 12 // 64)
    with tempfile.TemporaryDirectory() as folder:
        pair = random_pair.make_models(Path(folder), random_pair.PYTHIA_160M)
        files = random_pair.make_texts(Path(folder), options.texts)
        bare = random_pair.bare_passes(pair, files)
        made = ["--model-a", pair[0], "--model-b", pair[1], "--outroot", f"{folder}/out"]
        made += ["--device", "cpu", *(w for key, path in files.items() for w in (f"--{key}", path))]
        arguments = [*made, "--lipschitz-samples", "0", "--jacobian-samples", str(derivatives)]
        taken = step([*arguments, *options.rest])
        (path,) = Path(folder, "out").glob("*/lipschitzness/per_text.csv")
        table = pd.read_csv(path)
    print(f"{options.texts} + {options.texts} texts, {bare.tokens} tokens, {os.cpu_count()} cores")
    print(f"{derivatives} texts per split with derivatives, ", end="")
    print(f"{table['jacobian_iterations'].mean():.1f} iterations for the states")
    ratio = taken / bare.cpu
    print(f"step {taken:.1f} s, floor {bare.cpu:.1f} s (CPU time): {ratio:.2f} x the floor")


if __name__ == "__main__":
    main()
