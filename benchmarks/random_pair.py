"""Two models of random weights, texts and their bare passes: what several benchmarks start from."""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from model_diffs.activations import passes
from model_diffs.activations.passes import Reader
from model_diffs.core.options import Reading
from model_diffs.models import loading

PYTHIA_160M = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50304,
}
WORDS = 5000
SPLITS = ("forget", "retain")
# 64 + 64 lines of WikiText-2 have 18,746 tokens: lengths of paragraphs are about log-normal.
MEAN_LENGTH, SIGMA, LONGEST = 18_746 / 128, 0.7, 512


def shrunk(width: int, blocks: int, vocabulary: int) -> dict[str, int]:
    """The shape of Pythia-160M, made smaller."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    heads = {"num_attention_heads": max(1, width // 64)}
    return PYTHIA_160M | sizes | heads | {"num_hidden_layers": blocks, "vocab_size": vocabulary}


def make_models(folder: Path, shape: dict[str, Any]) -> list[str]:
    """Folders of two models, the second a little apart from the first in every direction."""
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    words = {f"w{i}": i for i in range(min(WORDS, shape["vocab_size"]))}
    rule = Tokenizer(models.WordLevel(words, unk_token="w0"))
    rule.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rule, pad_token="w0", eos_token="w0")
    found = [folder / name for name in "ab"]
    for place in found:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * weight.std().nan_to_num() * torch.randn_like(weight)
    return [str(place) for place in found]


def lengths(texts: int, seed: int) -> list[int]:
    """Log-normal numbers of tokens with the mean of WikiText-2's lines."""
    draw = random.Random(seed)
    drawn = [draw.lognormvariate(0, SIGMA) for _ in range(texts)]
    scale = texts * MEAN_LENGTH / sum(drawn)
    found = [min(LONGEST, max(2, round(scale * one))) for one in drawn]
    middle = sorted(range(texts), key=found.__getitem__)[texts // 2]
    found[middle] += round(texts * MEAN_LENGTH) - sum(found)  # what rounding and the cut took away
    return found


def make_texts(folder: Path, texts: int, words: int = WORDS) -> dict[str, str]:
    """Files of random words by split, one text a line: 18,746 tokens in 64 + 64 of them."""
    files = {}
    for seed, split in enumerate(SPLITS):
        draw = random.Random(f"words of {split}")
        lines = [
            " ".join(f"w{draw.randrange(1, words)}" for _ in range(length))
            for length in lengths(texts, seed)
        ]
        path = folder / f"{split}.txt"
        path.write_text("\n".join(lines))
        files[f"{split}_text"] = str(path)
    return files


class Floor(NamedTuple):
    """Bare passes of some models' trunks over both splits, in batches of 16."""

    cpu: float
    wall: float
    tokens: int
    """Of both splits, read once by each model."""


def bare_passes(names: Sequence[str], files: dict[str, str]) -> Floor:
    """Time of the passes alone, on the CPU in fp32, models loaded and texts tokenised before."""
    sample, _ = passes.of_splits(Reading(**files, device="cpu", max_samples=0, skip_first=0), names)
    cpu = wall = 0.0
    for name in names:
        reader = Reader(name, loading.load_model(name, torch.device("cpu"), torch.float32, False))
        for one in sample:
            started = time.process_time(), time.perf_counter()
            for at in one.batches("bare"):
                with torch.no_grad():
                    reader.anatomy.trunk(**at.batch._asdict(), use_cache=False)
            cpu += time.process_time() - started[0]
            wall += time.perf_counter() - started[1]
    return Floor(cpu, wall, sum(sum(one.tokens.lengths) for one in sample))
