"""What does step 12 cost in multiples of bare passes of both models over the same texts?

Makes a pair of models of Pythia-160M's shapes with random weights, and texts of 20 to 200 tokens,
in a scratch folder; runs step 12 on them as a process, its start and loading included; and times,
in the same run, one pass of both trunks over both splits in batches of 16: the floor. CPU seconds,
since a shared machine's clock is noisy. Of 64 texts 10 have a Jacobian, of fewer --texts as large a
share; the step's default is all.

    uv run benchmarks/step12.py
    uv run benchmarks/step12.py --texts 16 -- --num-perturbations 10 --tol 1e-3
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from model_diffs.activations import passes
from model_diffs.activations.passes import Reader
from model_diffs.core.step import load_script
from model_diffs.models import loading

JACOBIANS = 10
ROOT = Path(__file__).parents[1]
PYTHIA_160M = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50304,
}
WORDS, TEXTS = 5000, 64


def make(folder: Path, texts: int) -> list[str]:
    """Arguments that name two models, the second a little apart from the first, and texts."""
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**PYTHIA_160M))
    words = {f"w{i}": i for i in range(WORDS)}
    rule = Tokenizer(models.WordLevel(words, unk_token="w0"))
    rule.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rule, pad_token="w0", eos_token="w0")
    for name in ("a", "b"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * weight.std().nan_to_num() * torch.randn_like(weight)
    draw = random.Random(0)
    for split in ("forget", "retain"):
        lines = [
            " ".join(f"w{draw.randrange(1, WORDS)}" for _ in range(draw.randint(20, 200)))
            for _ in range(texts)
        ]
        (folder / f"{split}.txt").write_text("\n".join(lines))
    found = ["--model-a", folder / "a", "--model-b", folder / "b", "--outroot", folder / "out"]
    for split in ("forget", "retain"):
        found += [f"--{split}-text", folder / f"{split}.txt"]
    return [str(word) for word in (*found, "--device", "cpu")]


def floor(arguments: list[str]) -> tuple[float, int]:
    """CPU seconds of the bare passes of both trunks, and the number of tokens of both splits."""
    from model_diffs.core.options import parse

    options = parse(load_script(ROOT / "local_lipschitzness_analysis.py").Options, arguments, None)
    names = [options.model_a, *options.model_b]
    sample, _ = passes.of_splits(options, names)
    taken = 0.0
    for name in names:
        reader = Reader(name, loading.load_model(name, torch.device("cpu"), torch.float32, False))
        for one in sample:
            start = time.process_time()
            for at in one.batches("bare"):
                with torch.no_grad():
                    reader.anatomy.trunk(**at.batch._asdict(), use_cache=False)
            taken += time.process_time() - start
    return taken, sum(sum(one.tokens.lengths) for one in sample)


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
    derivatives = max(1, round(JACOBIANS * options.texts / TEXTS))
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), options.texts)
        bare, tokens = floor(made)
        arguments = [*made, "--lipschitz-samples", "0", "--jacobian-samples", str(derivatives)]
        taken = step([*arguments, *options.rest])
        (path,) = Path(folder, "out").glob("*/lipschitzness/per_text.csv")
        table = pd.read_csv(path)
    print(f"{options.texts} + {options.texts} texts, {tokens} tokens, {os.cpu_count()} cores")
    print(f"{derivatives} texts per split with derivatives, ", end="")
    print(f"{table['jacobian_iterations'].mean():.1f} iterations for the states")
    print(f"step {taken:.1f} s, floor {bare:.1f} s (CPU time): {taken / bare:.2f} x the floor")


if __name__ == "__main__":
    main()
