"""How much memory does the pass of step 4 need block by block, and are its numbers the same?

Two models of Pythia-160M's shapes with random weights are read side by side, block by block, and
one by one, each in a process of its own. What counts is resident memory, sampled, above that
before the pass; pages of mapped weight files are part of it.

    uv run benchmarks/blocks.py
    uv run benchmarks/blocks.py --texts 4 --width 256 --blocks 4 --vocabulary 8000
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import random_pair

WAYS = ("yes", "blocks", "no")


def measure(way: str, folder: Path) -> None:
    """The pass in this process; prints its peak in MB and its CPU seconds."""
    from model_diffs.activations import collecting, store
    from model_diffs.core.options import Pass

    texts = {f"{split}_text": str(folder / f"{split}.txt") for split in random_pair.SPLITS}
    a, b = (str(folder / name) for name in "ab")
    options = Pass(
        **texts, outroot=str(folder / way), device="cpu", max_samples=0, skip_first=0,
        side_by_side=way,
    )  # fmt: skip
    assert collecting  # imported before memory is looked at
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    thread = threading.Thread(target=sample)
    thread.start()
    started = time.process_time()
    store.statistics(options, [a, b], [(a, b)])
    spent = time.process_time() - started
    done.set()
    thread.join()
    print(f"{peak[0] / 1e6:.0f} {spent:.1f}")


def difference(folder: Path, way: str) -> float:
    """The largest difference of a saved number from that of models side by side, relative to the
    largest of its tensor."""
    import numpy as np
    from safetensors.numpy import load_file

    worst = 0.0
    for path in (folder / "yes").rglob("statistics.safetensors"):
        other = load_file(folder / way / path.relative_to(folder / "yes"))
        for name, value in load_file(path).items():
            apart = np.abs(other[name].astype(float) - value).max() / np.abs(value).max()
            worst = max(worst, float(apart))
    return worst


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=16, help="per split")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    width, blocks = options.width, options.blocks
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = random_pair.shrunk(width, blocks, options.vocabulary)
        random_pair.make_models(folder, shape)
        random_pair.make_texts(folder, options.texts, min(random_pair.WORDS, options.vocabulary))
        tokens = 2 * sum(random_pair.lengths(options.texts, 0))
        block, model = 12 * width**2 * 4, (folder / "a/model.safetensors").stat().st_size
        embedding = options.vocabulary * width * 4
        print(f"{options.texts} + {options.texts} texts, {tokens} tokens; MB of a model ", end="")
        print(f"{model / 1e6:.0f}, a block {block / 1e6:.0f}, an embedding {embedding / 1e6:.0f}")
        print(f"states of a split, both models {2 * tokens / 2 * width * 4e-6:.0f} MB, ", end="")
        print(f"second moments of both {2 * (blocks + 2) * width**2 * 8e-6:.0f} MB")
        print(f"{'':8} {'peak MB':>8} {'CPU s':>7}  apart from side by side")
        for way in WAYS:
            command = [sys.executable, __file__, "--measure", way, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, spent = done.stdout.split()[-2:]
            print(f"{way:8} {peak:>8} {spent:>7}  {difference(folder, way):.0e}", flush=True)


if __name__ == "__main__":
    main()
