"""What do the unlearning losses cost, one against another, in time and in memory?

Times and peak memories are taken in one run, at Pythia-160M's shapes cut to 4 blocks and a
vocabulary of 8192, random weights: npo and dpo against ga, rmu steered in the middle against a full
forward and backward pass, batches of similar length against fixed padding. Compared runs alternate
and the fastest round counts; memory is the peak of a process of its own.

    uv run benchmarks/unlearning.py
    uv run benchmarks/unlearning.py --texts lines.txt --rounds 2
"""

import argparse
import contextlib
import io
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tokenizers import ByteLevelBPETokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from model_diffs.core.provenance import peak_memory_bytes
from model_diffs.unlearning.data import Pair, Tokens, plan_epoch, split_batch
from model_diffs.unlearning.losses import get_loss
from model_diffs.unlearning.network import Network
from model_diffs.unlearning.reference import Reference
from model_diffs.unlearning.settings import Settings, Training
from model_diffs.unlearning.trainer import Trainer

BLOCKS, VOCABULARY, MIDDLE = 4, 8192, 1
SHAPES = {
    "hidden_size": 768,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": VOCABULARY,
}
SETTINGS = Settings(layers=(MIDDLE,), steering=(20.0,))
CPU = torch.device("cpu")


def make_network() -> Network:
    """Pythia-160M's shapes, fewer blocks, random weights."""
    torch.manual_seed(0)
    return Network(GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPES)).eval())


def random_texts(lengths: list[int], seed: int) -> Tokens:
    """Random token ids of these lengths."""
    drawn = random.Random(seed)
    return Tokens([[drawn.randrange(VOCABULARY) for _ in range(n)] for n in lengths], [], {})


class Bench:
    """One method, ready to take the same step again and again."""

    def __init__(self, method: str, network: Network, lengths: list[int]) -> None:
        everything = list(range(len(lengths)))
        forget, retain = (random_texts(lengths, seed) for seed in (1, 2))
        self.trainer = Trainer(
            network,
            get_loss(method),
            SETTINGS,
            Training(batch_size=len(lengths)),
            forget,
            retain,
            0,
            Accelerator(cpu=True),
        )
        # The same texts side by side for every method, those that pair them and those that do not.
        self.trainer.steps = [{"forget": everything, "retain": everything}]
        self.reference: Reference
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            self.reference = self.trainer.make_reference(torch.float32, Path(folder))
            self.reference_seconds = time.perf_counter() - started

    def step(self) -> None:
        """Forward, backward, clipping and AdamW."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer.train(self.reference)

    def passes(self) -> None:
        """Forward and backward alone."""
        trainer = self.trainer
        step = trainer.steps[0]
        pair = Pair(**{split: trainer.batch(split, indices) for split, indices in step.items()})
        loss = trainer.network(trainer.loss.compute, pair, self.reference, SETTINGS).loss
        loss.backward()
        trainer.network.zero_grad(set_to_none=True)


def fastest(actions: dict[Any, Callable[[], None]], rounds: int) -> dict[Any, float]:
    """Seconds of each action, the least over `rounds`, the actions alternating."""
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(rounds):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def print_peak(method: str) -> None:
    """Two steps of a method; prints how far they raise the peak of memory, in bytes."""
    before = peak_memory_bytes()
    bench = Bench(method, make_network(), [96] * 8)
    bench.step()
    bench.step()
    print(peak_memory_bytes() - before)


def peak(method: str) -> int:
    """Peak memory of a method in bytes, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", method]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


# ── padding ───────────────────────────────────────────────────────────────────────────────────────


def read_texts(path: str | None, max_length: int) -> list[list[int]]:
    """Lines of a file, in tokens of a BPE trained on it; without a file, lengths as of prose."""
    if path is None:
        drawn = random.Random(0)
        lengths = [int(drawn.lognormvariate(4.3, 0.9)) for _ in range(1024)]
        return random_texts([min(max(n, 2), max_length) for n in lengths], 3).train
    lines = [line for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines, vocab_size=VOCABULARY, show_progress=False)
    ids = [one.ids[:max_length] for one in tokenizer.encode_batch(lines)]
    return [one for one in ids if len(one) > 1]


def padding(network: Network, texts: list[list[int]], max_length: int, sample: int) -> list[str]:
    """Time of batches of similar length, and of the same texts padded to `max_length`."""
    size = 2
    steps = plan_epoch([len(ids) for ids in texts], [], size, 1, 0)
    positions = [max(len(texts[i]) for i in step.forget) for step in steps]
    # Quantiles of the epoch by length, so that a few batches stand for all.
    order = sorted(range(len(steps)), key=lambda i: positions[i])
    chosen = [order[(2 * k + 1) * len(order) // (2 * sample)] for k in range(sample)]
    method = get_loss("ga_simple").compute

    def run(index: int, width: int) -> None:
        batch = split_batch(texts, steps[index].forget, 0, CPU)
        extra = width - batch.input_ids.shape[1]
        pad = torch.nn.functional.pad
        wide = batch._replace(
            input_ids=pad(batch.input_ids, (0, extra)),
            attention_mask=pad(batch.attention_mask, (0, extra)),
        )
        network(method, Pair(wide, None), None, SETTINGS).loss.backward()
        network.zero_grad(set_to_none=True)

    actions: dict[int, Callable[[], None]]
    actions = {index: partial(run, index, positions[index]) for index in chosen}
    actions[-1] = partial(run, chosen[0], max_length)  # costs every batch the same
    times = fastest(actions, 2)
    fixed = times.pop(-1)
    bucketed = sum(times.values()) / len(times)
    saved = max_length * len(steps) / sum(positions)
    return [
        f"{len(texts)} texts of {sum(map(len, texts)) / len(texts):.0f} tokens, "
        f"{size} to a batch, {sample} batches measured",
        row(f"padded to {max_length}", fixed, 1.0),
        row("of similar length", bucketed, bucketed / fixed),
        f"fixed padding takes {fixed / bucketed:.2f} times the time and {saved:.2f} times the "
        "positions",
    ]


# ── the tables ────────────────────────────────────────────────────────────────────────────────────


def row(name: str, value: float, ratio: float, limit: float | None = None) -> str:
    """A line of a table, with whether a claim holds."""
    claim = "" if limit is None else f"   ≤ {limit:.2f} {'ok' if ratio <= limit else 'MISSED'}"
    return f"  {name:34} {value:9.3f} {ratio:7.3f}{claim}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", default=None, help="lines to compare padding on")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=6, help="batches to compare padding on")
    parser.add_argument("--peak-of", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print_peak(options.peak_of)
        return
    print(f"Pythia-160M's shapes, {BLOCKS} blocks, vocabulary {VOCABULARY}, fp32, ", end="")
    print(f"{torch.get_num_threads()} threads")
    print(f"  {'peak memory, 8 + 8 texts of 96':34} {'GB':>9} {'ratio':>7}")
    peaks = {method: peak(method) / 1e9 for method in ("ga", "npo", "dpo")}
    for name, value in peaks.items():
        print(row(name, value, value / peaks["ga"], None if name == "ga" else 1.15))
    network = make_network()
    lengths = [24 + 8 * k for k in range(6)]
    benches = {name: Bench(name, network, lengths) for name in ("ga", "npo", "dpo", "rmu")}
    actions = {name: benches[name].step for name in ("ga", "npo", "dpo")}
    for action in actions.values():
        action()  # warm up, and make the optimisers' states
    print(f"  {f'one step, 6 + 6 texts of {lengths[0]} to {lengths[-1]}':34} {'s':>9} {'ratio':>7}")
    times = fastest(actions, options.rounds)
    for name, value in times.items():
        print(row(name, value, value / times["ga"], None if name == "ga" else 1.10))
    for name in ("npo", "dpo"):
        once = benches[name].reference_seconds / times["ga"]
        print(f"  {name}'s reference costs {once:.2f} of a ga step, once per text")
    print(f"  {'forward and backward, same texts':34} {'s':>9} {'ratio':>7}")
    full, middle = "full (ga)", f"rmu after {MIDDLE + 1} of {BLOCKS} blocks"
    times = fastest({full: benches["ga"].passes, middle: benches["rmu"].passes}, options.rounds)
    print(row(full, times[full], 1.0))
    print(row(middle, times[middle], times[middle] / times[full], 0.60))
    del benches
    texts = read_texts(options.texts, options.max_length)
    print(f"  {'forward and backward, batches':34} {'s':>9} {'ratio':>7}")
    print("\n".join(padding(network, texts, options.max_length, options.sample)))


if __name__ == "__main__":
    main()
