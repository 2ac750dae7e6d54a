"""How much memory do unlearning and the LoRA attack take, against an earlier commit?

Makes a base with Pythia-160M's shapes but fewer blocks, stored in bf16 (random weights), and texts;
runs each script of this checkout and of the commit, alternating, as processes, for two steps; and
prints the peaks of their resident memory, less that of the same command on a tiny model. Linux.

    uv run benchmarks/training_memory.py
    uv run benchmarks/training_memory.py --cases rmu --blocks 4 --against HEAD~10
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.memory import ROOT, TEXT_WORDS, TINY, TRAINED, Case, make, run

BASE = ("--model", "a", *TRAINED)
ATTACK = ("--model", "a", "--arm", "lora", "--lr", "1e-4", "--steps", "2", "--eval-steps", "0,2")
CASES = {
    "rmu": Case("unlearn.py", (*BASE, "--method", "rmu", "--layer-id", "1")),
    "cb": Case("unlearn.py", (*BASE, "--method", "cb", "--layer-id", "1")),
    "npo": Case("unlearn.py", (*BASE, "--method", "npo")),
    "npo, LoRA": Case("unlearn.py", (*BASE, "--method", "npo", "--lora-rank", "8")),
    "npo in parts": Case("unlearn.py", (*BASE, "--method", "npo", "--batch-tokens", "128")),
    "relearn, LoRA": Case(
        "relearn.py", (*ATTACK, "--batch-size", "4", "--device", "cpu", *TEXT_WORDS)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--against", default="7c06ba2")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    options = parser.parse_args()
    size = {name: getattr(options, name) for name in TINY}
    with tempfile.TemporaryDirectory() as name:
        old, folders = Path(name, "old"), {"tiny": TINY, "full": size}
        for folder, shape in folders.items():
            make(Path(name, folder), **shape, dtype="bfloat16")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), options.against], check=True)
        try:
            print(f"{size}, stored in bf16; against {options.against}")
            print(f"{'case':16s} {'before':>10s} {'now':>10s} {'ratio':>6s}")
            for case in options.cases:
                measure(case, Path(name), old)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)


def measure(name: str, place: Path, old: Path) -> None:
    """Print the peaks of one case."""
    case = CASES[name]
    taken = {}
    for which, root in (("before", old), ("now", ROOT)):
        if which == "before" and "--batch-tokens" in case.words:
            continue
        out = f"{which}_{name.replace(', ', '_').replace(' ', '_')}"
        peak, idle = (run(case, place / size, out, root)[0] for size in ("full", "tiny"))
        taken[which] = (peak - idle) / 1e6
    before = taken.get("before")
    shown = f"{before:7.0f} MB" if before else f"{'–':>10s}"
    ratio = f"{taken['now'] / before:6.2f}" if before else ""
    print(f"{name:16s} {shown} {taken['now']:7.0f} MB {ratio}", flush=True)


if __name__ == "__main__":
    main()
