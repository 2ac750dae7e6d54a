"""How near is what each step says that it needs to what it takes?

Makes a pair of models with Pythia-160M's shapes (random weights) and texts in a scratch folder,
runs steps as processes and samples their memory. Printed per step: the estimate that it prints
before it loads anything, the peak, and their ratio; wanted within 20 %. Measured is resident
memory, of steps that load no model anonymous memory: what is mapped of weight files that are only
read through can be dropped. What the interpreter and its libraries take is measured on a tiny pair
and subtracted. Linux only.

    uv run benchmarks/memory.py
    uv run benchmarks/memory.py --cases 1,4 --hidden 512 --blocks 8
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [f"{a}{b}{c}" for a in LETTERS for b in LETTERS for c in LETTERS][:5000]
LENGTH, TEXTS = 128, 32
TINY = {"hidden": 64, "blocks": 2, "vocabulary": 5120}


class Case(NamedTuple):
    """A command whose memory is measured."""

    script: str
    words: tuple[str, ...]
    field: str = "resident"


TEXT_WORDS = ("--forget-text", "forget.txt", "--retain-text", "retain.txt")
TRAINED = ("--steps", "2", "--batch-size", "4", "--device", "cpu", *TEXT_WORDS)
COMPARED = ("--model-a", "a", "--model-b", "b", "--device", "cpu")
CASES = {
    "1": Case("collect_param_stats.py", COMPARED, "anonymous"),
    "4": Case("collect_activation_norms.py", (*COMPARED, *TEXT_WORDS, "--batch-size", "8")),
    "7": Case("null_space_analysis.py", COMPARED, "anonymous"),
    "10": Case("mlp_nullspace_alignment.py", COMPARED, "anonymous"),
    "11": Case("row_space_projection_analysis.py", (*COMPARED, *TEXT_WORDS, "--batch-size", "8")),
    "12": Case(
        "local_lipschitzness_analysis.py",
        (*COMPARED, *TEXT_WORDS, "--lipschitz-samples", "2", "--max-iters", "4"),
    ),
    "rmu": Case(
        "unlearn.py",
        ("--model", "a", "--method", "rmu", "--layer-id", "1", *TRAINED),
    ),
    "npo": Case(
        "unlearn.py",
        ("--model", "a", "--method", "npo", *TRAINED),
    ),
    "17": Case("kl_divergence.py", (*COMPARED, *TEXT_WORDS, "--batch-size", "4")),
}


def make(folder: Path, hidden: int, blocks: int, vocabulary: int, dtype: str = "float32") -> None:
    """Two models, a tokenizer of three-letter words, and lines of `LENGTH` of them."""
    code = f"""
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from benchmarks.memory import WORDS
torch.manual_seed(0)
config = GPTNeoXConfig(hidden_size={hidden}, num_hidden_layers={blocks},
    num_attention_heads={max(1, hidden // 64)}, intermediate_size={4 * hidden},
    vocab_size={vocabulary}, max_position_embeddings=2048)
rule = Tokenizer(models.WordLevel({{w: i for i, w in enumerate(WORDS)}}, unk_token=WORDS[0]))
rule.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=rule, pad_token=WORDS[0], eos_token=WORDS[0])
model = GPTNeoXForCausalLM(config).to(torch.{dtype})
for name in ("a", "b"):
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.std().nan_to_num() * torch.randn_like(weight)
"""
    folder.mkdir(parents=True)
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)
    draw = random.Random(0)
    for split in ("forget", "retain"):
        lines = [" ".join(draw.choices(WORDS, k=LENGTH)) for _ in range(TEXTS)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")


def memory_of(pid: int) -> dict[str, float]:
    """Bytes of a process: `resident` at its peak so far, `anonymous` now; empty once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    named = {"resident": "VmHWM", "anonymous": "RssAnon"}
    return {k: int(lines[v].split()[0]) * 1024.0 for k, v in named.items() if v in lines}


def run(case: Case, folder: Path, out: str, root: Path = ROOT) -> tuple[float, float, float]:
    """Peak bytes, the estimate that the step printed, and wall seconds; scripts are those of
    `root`."""
    command = [sys.executable, str(root / case.script), *case.words, "--outdir", out]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment
        ) as child,
    ):
        started, peak = time.perf_counter(), 0.0
        while child.poll() is None:
            peak = max(peak, memory_of(child.pid).get(case.field, 0.0))
            time.sleep(0.02)
        log.seek(0)
        said = log.read()
    if child.returncode:
        raise SystemExit(f"{case.script} failed:\n{said}")
    found = re.search(r"needs about ([0-9.]+) GB of main memory", said)
    estimate = float(found[1]) * 1e9 if found else float("nan")
    return peak, estimate, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=50304)
    options = parser.parse_args()
    size = {name: getattr(options, name) for name in TINY}
    with tempfile.TemporaryDirectory() as name:
        tiny, full = Path(name, "tiny"), Path(name, "full")
        make(tiny, **TINY)
        make(full, **size)
        print(f"{size}, {TEXTS} + {TEXTS} texts of {LENGTH} tokens")
        print(f"{'step':6s} {'estimate':>10s} {'measured':>10s} {'ratio':>6s} {'seconds':>8s}")
        for number in options.cases.split(","):
            idle, _, _ = run(CASES[number], tiny, f"out_{number}")
            peak, estimate, seconds = run(CASES[number], full, f"out_{number}")
            taken = peak - idle
            row = f"{number:6s} {estimate / 1e6:7.0f} MB {taken / 1e6:7.0f} MB"
            print(f"{row} {estimate / taken:6.2f} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
