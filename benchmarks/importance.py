"""What do 65,536 features cost beside the work that cannot be saved, and how much memory?

The reference does what is unavoidable and nothing else: the model's pass up to the layer (for
gradients: the whole pass, the loss and the backward pass down to the layer), and one product of
each activation with the encoder. Ours encodes, selects, sums, and for gradients multiplies with
decoder rows. Random weights in the shape of Qwen2.5-0.5B; both in the same process, by CPU time on
one thread, memory by sampling what is resident, above the loaded model.

    uv run benchmarks/importance.py
    uv run benchmarks/importance.py --texts 16 --blocks 4 --vocabulary 32000
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import Tokens
from model_diffs.dictionaries.sae import Sae
from model_diffs.importance import lenses, measuring
from model_diffs.importance.gradients import frozen, loss_gradient
from model_diffs.importance.lenses import SaeFeatures
from model_diffs.importance.options import Options
from model_diffs.models import loading
from model_diffs.models.sites import watch

HIDDEN, LENGTH = 896, 128
MB = 2**20


def build(blocks: int, vocabulary: int) -> Reader:
    """A model of Qwen2.5-0.5B's shape with `blocks` of its 24 blocks."""
    config = AutoConfig.for_model(
        "qwen2", hidden_size=HIDDEN, num_hidden_layers=blocks, num_attention_heads=14,
        num_key_value_heads=2, intermediate_size=4864, vocab_size=vocabulary,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return Reader("random", AutoModelForCausalLM.from_config(config).float().eval())


def dictionary(size: int, k: int) -> Sae:
    """A random TopK SAE."""
    encoder = torch.randn(size, HIDDEN) / HIDDEN**0.5
    bias = torch.zeros(HIDDEN)
    return Sae(encoder, torch.zeros(size), encoder.clone(), bias, "topk", True, k)


class Peak:
    """The most that was resident while a block ran, above what was when it was made."""

    def __init__(self) -> None:
        self.process, self.highest = psutil.Process(), 0
        self.floor = self.process.memory_info().rss

    @contextmanager
    def sampled(self) -> Iterator[None]:
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.003):
                self.highest = max(self.highest, self.process.memory_info().rss - self.floor)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of this thread alone: the sampler's is not counted."""
    start = time.thread_time()
    result = work()
    return time.thread_time() - start, result


def reference(
    reader: Reader, sae: Sae, tokens: Tokens, layer: int, gradients: bool, batch_size: int
) -> None:
    """The unavoidable: forward (and backward), and the encoder's product."""
    step = lenses._PRE_ACTIVATIONS // sae.d_sae

    def product(x: torch.Tensor) -> None:
        flat = x.detach().reshape(-1, HIDDEN)
        for start in range(0, len(flat), step):
            torch.addmm(sae.encoder_bias, flat[start : start + step], sae.encoder.T)

    held: list[torch.Tensor] = []

    def receive(_: int, x: torch.Tensor) -> torch.Tensor:
        held[:] = [x.detach().requires_grad_() if gradients else x]
        return held[0]

    for start in range(0, len(tokens.ids), batch_size):
        batch = loading.pad_batch(tokens.ids[start : start + batch_size], 0, torch.device("cpu"))
        with watch(reader.anatomy, "mlp_out", (layer,), receive):
            if gradients:
                with frozen(reader.model):
                    logits = reader.model(input_ids=batch.input_ids, use_cache=False).logits
                    torch.autograd.grad(logits, held, loss_gradient(logits, batch)[2])
            else:
                with torch.inference_mode():
                    loading.stream_states(reader.anatomy, batch, lambda *_: None, last=layer + 1)
        product(held[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    reader = build(options.blocks, options.vocabulary)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, options.vocabulary, (options.texts, LENGTH)).tolist()
    tokens = Tokens(ids, [0] * len(ids), np.arange(len(ids)), {})
    layer = options.blocks // 2
    peak = Peak()
    sae = dictionary(options.features, options.k)
    lens = SaeFeatures({layer: sae})
    print(
        f"{options.texts} texts of {LENGTH} tokens, {options.features:,} features, k {options.k}, "
        f"layer {layer} of {options.blocks} (Qwen2.5-0.5B has 24), vocabulary "
        f"{options.vocabulary:,}, batches of {options.batch_size}"
    )
    print(f"{'':12} {'reference':>11} {'ours':>11} {'ratio':>7} {'peak above the model':>22}")
    for gradients in (False, True):
        needed, _ = seconds(
            lambda g=gradients: reference(reader, sae, tokens, layer, g, options.batch_size)
        )
        chosen = Options(
            aggregate_by="gradients" if gradients else "values", batch_size=options.batch_size
        )
        with peak.sampled():
            taken, found = seconds(
                lambda o=chosen: measuring.measure(reader, tokens, 0, lens, (layer,), o)
            )
        active = int((found.means[layer][1] > 0).sum())
        print(
            f"{'gradients' if gradients else 'values':12} {needed:9.2f} s {taken:9.2f} s "
            f"{taken / needed:7.2f} {peak.highest / MB:17,.0f} MiB   {active:,} features active"
        )


if __name__ == "__main__":
    main()
