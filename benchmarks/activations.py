"""What do the activation steps cost beyond the forward passes that they need?

Times, in one run, the bare forward passes of two models' trunks over both splits, the same passes
with every statistic of step 4 and later, step 9's spectra included, and what steps 8 and 13 then
compute from these (bootstrap, figures and process starts left out), at Pythia-160M's shapes with
random weights.

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
from random_pair import PYTHIA_160M
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from model_diffs.activations import passes
from model_diffs.activations.passes import Reader, SplitPass
from model_diffs.activations.saved import ModelStatistics
from model_diffs.activations.sums import DifferenceSums, ModelSums
from model_diffs.activations.tokens import Tokens
from model_diffs.data.texts import Split
from model_diffs.diagnostics import probes, separation
from model_diffs.models import devices
from model_diffs.stats import cross_validation
from model_diffs.stats.cross_validation import Design


def make_reader(name: str, seed: int, device: torch.device) -> Reader:
    """A model of Pythia-160M's shapes with random weights."""
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**PYTHIA_160M)).to(device).eval()
    return Reader(name, model)


def make_pass(name: str, texts: int, device: torch.device) -> SplitPass:
    """Random token ids of 64 to 192 tokens a text, as paragraphs have."""
    drawn = random.Random(name)
    lengths = [drawn.randint(64, 192) for _ in range(texts)]
    ids = [[drawn.randrange(50000) for _ in range(length)] for length in lengths]
    tokens = Tokens(ids, [0] * texts, np.arange(texts), {})
    return SplitPass(Split(name, Path(name), []), tokens, 16, 0, device)


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


Found = dict[tuple[str, str], ModelStatistics]


def with_statistics(readers: list[Reader], todo: list[SplitPass]) -> Found:
    """The same passes with all sums, finished: statistics by model and split."""
    base, changed = (reader.name for reader in readers)
    for one in todo:
        texts = len(one.tokens.ids)
        one.own = {reader.name: ModelSums(reader.name, texts) for reader in readers}
        one.changes = {(base, changed): DifferenceSums(changed, texts)}
    found: Found = {}

    def finish(one: SplitPass, _: Sequence[str]) -> None:
        for name, own in one.own.items():
            statistics = own.statistics(one.tokens.documents, one.tokens.counts)
            found[name, one.split.name] = statistics
        for change in one.changes.values():
            change.statistics(one.tokens.documents, one.tokens.counts)

    passes.run_side_by_side(readers, todo, finish)
    return found


def without_intervals(texts: int) -> Design:
    """Folds as the steps use them, and one resample in place of a thousand."""
    plan = cross_validation.design(texts, texts, cross_validation.FOLDS, 42)
    return plan._replace(forget=plan.forget[:1], retain=plan.retain[:1])


def separations(found: Found, names: Sequence[str], plan: Design) -> None:
    """Step 8 of both models."""
    for name in names:
        pooled = [found[name, split].pooled for split in ("forget", "retain")]
        separation.measure(pooled, plan, name)


def probe(found: Found, names: Sequence[str], plan: Design) -> None:
    """Step 13 of both models."""
    settings = probes.Settings(C=1.0, max_iter=1000, standardize=True, seed=42)
    for name in names:
        forget, retain = (found[name, split].last for split in ("forget", "retain"))
        task = probes.control_task(np.arange(len(plan.labels)), plan, 42)
        probes.probe_tables(forget, retain, plan, settings, task)


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
    found: Found = {}
    rounds = []
    for _ in range(options.repeats):  # alternating, so that a busy neighbour touches both alike
        plain = seconds(lambda: bare(readers, todo))
        rounds.append((plain, seconds(lambda: found.update(with_statistics(readers, todo)))))
    plain, full = (min(times) for times in zip(*rounds, strict=True))
    names, plan = [reader.name for reader in readers], without_intervals(options.texts)
    rows = {"with all statistics of the pass": full}
    rows["step 8 from them"] = seconds(lambda: separations(found, names, plan))
    rows["step 13 from them"] = seconds(lambda: probe(found, names, plan))
    rows["steps 4, 5, 8, 9 and 13 together"] = sum(rows.values())
    print(f"two models of Pythia-160M's shapes, {options.texts} + {options.texts} texts, ", end="")
    print(f"{tokens} tokens, {device}, {torch.get_num_threads()} threads")
    print(f"{'':34} {'seconds':>8} {'ratio':>6}")
    print(f"{'bare forward passes, no head':34} {plain:8.2f} {1:6.2f}")
    for what, spent in rows.items():
        print(f"{what:34} {spent:8.2f} {spent / plain:6.2f}")
    ratios = ", ".join(f"{f / p:.3f}" for p, f in rounds)
    print(f"ratio of the pass in each round: {ratios}")


if __name__ == "__main__":
    main()
