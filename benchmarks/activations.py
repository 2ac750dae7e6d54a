"""What do the activation statistics cost beyond the forward passes that they need?

Times, in one run, the bare forward passes of two models' trunks over both splits and the same
passes with every statistic of step 4 and later, at Pythia-160M's shapes with random weights.

    uv run benchmarks/activations.py
    uv run benchmarks/activations.py --texts 16 --repeats 1
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from model_diffs import devices, passes
from model_diffs.accumulators import DifferenceSums, ModelSums
from model_diffs.passes import Reader, SplitPass, Tokens
from model_diffs.texts import Split

PYTHIA_160M = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50304,
}


def make_reader(name: str, seed: int, device: torch.device) -> Reader:
    """A model of Pythia-160M's shapes with random weights."""
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**PYTHIA_160M)).to(device).eval()
    return Reader(name, model)


def make_pass(name: str, texts: int, device: torch.device) -> SplitPass:
    """Random token ids of 16 to 96 tokens a text, as sentences have."""
    drawn = random.Random(name)
    lengths = [drawn.randint(16, 96) for _ in range(texts)]
    ids = [[drawn.randrange(50000) for _ in range(length)] for length in lengths]
    tokens = Tokens(ids, [0] * texts, np.arange(texts), {})
    return SplitPass(Split(name, Path(name), [], ""), tokens, 16, 0, device)


def bare(readers: list[Reader], todo: list[SplitPass]) -> None:
    """The forward passes alone."""
    for one in todo:
        for at in one.batches("bare"):
            for reader in readers:
                reader.anatomy.trunk(
                    input_ids=at.batch.input_ids,
                    attention_mask=at.batch.attention_mask,
                    use_cache=False,
                )


def with_statistics(readers: list[Reader], todo: list[SplitPass]) -> None:
    """The same passes with all sums, finished."""
    base, changed = (reader.name for reader in readers)
    for one in todo:
        texts = len(one.tokens.ids)
        one.own = {reader.name: ModelSums(reader.name, texts) for reader in readers}
        one.changes = {(base, changed): DifferenceSums(texts)}

    def finish(one: SplitPass, _: Sequence[str]) -> None:
        for own in one.own.values():
            own.statistics(one.tokens.documents, one.tokens.counts)
        for change in one.changes.values():
            change.statistics(one.tokens.documents, one.tokens.counts)

    passes.run_side_by_side(readers, todo, finish)


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=64, help="per split")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = devices.pick_device(options.device)
    readers = [make_reader(name, seed, device) for seed, name in enumerate(("base", "changed"))]
    todo = [make_pass(split, options.texts, device) for split in ("forget", "retain")]
    tokens = sum(int(one.tokens.counts.sum()) for one in todo)
    bare(readers, todo)  # warm up
    # Alternating, so that a drifting clock or a busy neighbour touches both alike.
    rounds = [
        (seconds(lambda: bare(readers, todo)), seconds(lambda: with_statistics(readers, todo)))
        for _ in range(options.repeats)
    ]
    plain, full = (min(times) for times in zip(*rounds, strict=True))
    ratios = [f / p for p, f in rounds]
    print(f"two models of Pythia-160M's shapes, {options.texts} + {options.texts} texts, ", end="")
    print(f"{tokens} tokens, {device}, {torch.get_num_threads()} threads")
    print(f"{'':34} {'seconds':>8} {'ratio':>6}")
    print(f"{'bare forward passes, no head':34} {plain:8.2f} {1:6.2f}")
    print(f"{'with all statistics of the pass':34} {full:8.2f} {full / plain:6.2f}")
    print("ratio of each round: " + ", ".join(f"{ratio:.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
